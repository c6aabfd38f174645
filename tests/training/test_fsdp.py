"""A model divided over two processes trains like a whole one, and nobody holds more than a share."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.training.processes import accident, processes, sigterm
from tl_experiments.errors import ConfigError
from tl_experiments.interrupt import Interrupted
from tl_experiments.records import RunRecord
from tl_experiments.training.build import build
from tl_experiments.training.run import run
from tl_experiments.training.sharding import units

VIT = [
    "backbone=timm", "backbone.name=test_vit", "backbone.preprocessing.image_size=32",
    "backbone.kwargs={patch_size: 8}", "trainer.batch_size=7", "trainer.max_epochs=8",
]  # fmt: skip
FSDP = ["trainer=fsdp", "trainer.batch_scaling=none", "trainer.timeout_s=60"]


@pytest.fixture(scope="module")
def pair():
    with processes(2) as started:
        yield started


def held_after_each_step(cfg, folder):
    """The record, and the numbers that this process holds of parameters and of what the optimizer keeps of them."""
    seen = []

    def note(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
        assert all(isinstance(tensor, DTensor) for tensor in (*parameters, *kept))
        seen.append([sum(t.to_local().numel() for t in tensors) for tensors in (parameters, kept)])

    handle = register_optimizer_step_post_hook(note)
    try:
        return run(cfg, folder), seen
    finally:
        handle.remove()


def same(one, two, atol):
    (a, b) = (load_file(folder / "checkpoint.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=atol, msg=name)
    tables = [pq.read_table(folder / "predictions.parquet").to_pydict() for folder in (one, two)]
    assert tables[0].keys() == tables[1].keys()
    metrics = [RunRecord.read(folder).metrics for folder in (one, two)]
    assert metrics[1]["test"]["nll"] == pytest.approx(metrics[0]["test"]["nll"], abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "kept"),  # of the optimizer, a parameter
    [
        (["freeze_strategy=full", "optimizer=sgd", "optimizer.lr=0.05"], 1),
        (["freeze_strategy=last_n_blocks", "optimizer.lr=1e-4"], 2),
        (["freeze_strategy=lp_ft", "trainer.gradient_checkpointing=true", "trainer.accumulation=2"], 2),
    ],
    ids=["full", "last_n_blocks", "lp_ft"],
)
def test_a_divided_model_ends_where_a_whole_one_does(tiny, tmp_path, pair, overrides, kept):
    run(tiny(*VIT, *overrides, "feature_cache=off"), tmp_path / "whole")
    answers = pair.do(held_after_each_step, tiny(*VIT, *overrides, *FSDP), tmp_path / "divided")
    for answer in answers:
        assert not isinstance(answer, BaseException), answer
    same(tmp_path / "whole", tmp_path / "divided", 1e-5)

    steps = np.array([seen for _, seen in answers])  # process, step, parameters and what is kept of them
    assert steps.shape[1] == 24  # optimizer steps
    parameters = steps[:, :, 0].sum(axis=0)
    assert (steps[:, :, 0].max(axis=0) <= 0.51 * parameters + 100).all()  # rows of one tensor may not divide evenly
    assert (steps[:, :, 1] == kept * steps[:, :, 0]).all()


def test_a_signal_ends_both_and_they_go_on_to_the_same_end(tiny, tmp_path, pair):
    """The resume point holds whole tensors: of the model, of the optimizer, and of the best weights so far."""
    cfg = tiny(*VIT, *FSDP, "freeze_strategy=lp_ft", "optimizer.lr=1e-3")
    for answer in pair.do(held_after_each_step, cfg, tmp_path / "whole"):
        assert not isinstance(answer, BaseException), answer
    cut = pair.do(accident, cfg, tmp_path / "cut", 1, 18, sigterm)  # a later phase; rank 1 alone is told
    assert all(isinstance(answer, Interrupted) for answer in cut), cut
    (path,) = sorted((tmp_path / "cut").glob("resume-*.pt"))[-1:]
    point = torch.load(path, weights_only=True)
    assert not any(isinstance(tensor, DTensor) for tensor in point["model"].values())
    (shape,) = {state["exp_avg"].shape for state in point["optimizer"]["state"].values() if state["exp_avg"].ndim == 4}
    assert shape == point["model"]["backbone.net.patch_embed.proj.weight"].shape
    for answer in pair.do(held_after_each_step, cfg, tmp_path / "cut"):
        assert not isinstance(answer, BaseException), answer
    same(tmp_path / "whole", tmp_path / "cut", 0)


def test_a_unit_is_a_block(tiny):
    model = build(tiny(*VIT, "freeze_strategy=full")).model
    found = {id(module): name for name, module in model.named_modules()}
    names = [found[id(module)] for module in units(model)]
    assert [name for name in names if "blocks" in name] == [f"backbone.net.blocks.{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("trainer.ema_decay=0.9", "trainer.ema_decay: got 0.9, expected null, of a model that is divided"),
        ("trainer.compile_backend=eager", "trainer.compile_backend: got eager, expected null, of a model"),
        ("trainer.precision=16-mixed", "trainer.precision: got 16-mixed, expected auto, bf16-mixed or 32-true"),
        ("optimizer=timm optimizer.algorithm=lamb", "optimizer: timm on a model that is divided"),
    ],
)
def test_what_a_divided_model_cannot_have(tiny, override, error):
    with pytest.raises(ConfigError, match=error):
        tiny("trainer=fsdp", "freeze_strategy=full", *override.split())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["full", "lp_ft"])
def test_on_gpus_too(tiny, tmp_path, strategy, precision):
    """Over two where there are as many; one holds it all, but by the same way."""
    n = min(2, torch.cuda.device_count())
    on_gpu = [*VIT, "trainer.accelerator=gpu", f"trainer.precision={precision}", f"freeze_strategy={strategy}"]
    run(tiny(*on_gpu, "feature_cache=off"), tmp_path / "whole")
    with processes(n) as started:
        for answer in started.do(
            held_after_each_step, tiny(*on_gpu, *FSDP, f"trainer.devices={n}"), tmp_path / "divided"
        ):
            assert not isinstance(answer, BaseException), answer
    same(tmp_path / "whole", tmp_path / "divided", 1e-3 if precision == "32-true" else 2e-2)
