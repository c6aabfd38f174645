"""A model divided over two processes trains like a whole one, and nobody holds more than a share."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.training.processes import processes
from tl_experiments.records import RunRecord
from tl_experiments.training.run import run

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
    "overrides",
    [
        ["freeze_strategy=full", "optimizer=sgd", "optimizer.lr=0.05"],
        ["freeze_strategy=last_n_blocks", "optimizer.lr=1e-4"],
        ["freeze_strategy=lp_ft", "trainer.gradient_checkpointing=true", "trainer.accumulation=2"],
    ],
    ids=["full", "last_n_blocks", "lp_ft"],
)
def test_a_divided_model_ends_where_a_whole_one_does(tiny, tmp_path, pair, overrides):
    whole = run(tiny(*VIT, *overrides, "feature_cache=off"), tmp_path / "whole")
    answers = pair.do(held_after_each_step, tiny(*VIT, *overrides, *FSDP), tmp_path / "divided")
    for answer in answers:
        assert not isinstance(answer, BaseException), answer
    assert whole.steps >= 20
    same(tmp_path / "whole", tmp_path / "divided", 1e-5)

    steps = np.array([seen for _, seen in answers])  # process, step, parameters and what is kept of them
    assert steps.shape[1] == whole.steps
    parameters = steps[:, :, 0].sum(axis=0)
    assert (steps[:, :, 0].max(axis=0) <= 0.51 * parameters + 100).all()  # rows of one tensor may not divide evenly
    assert (steps[:, :, 1] % steps[:, :, 0] == 0).all()
