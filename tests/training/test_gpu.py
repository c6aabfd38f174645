"""The paths that only a GPU takes: bf16, tensors on the device, resumes from files that were written there."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_resume import killed_at
from tl_experiments.features import encoding
from tl_experiments.probes.stack import ProbeStack
from tl_experiments.probes.updates import AdamW
from tl_experiments.training.build import build
from tl_experiments.training.groups import ALONE
from tl_experiments.training.optimization import build_optimizer
from tl_experiments.training.run import run
from tl_experiments.training.together import run_together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

EVERYTHING = [
    "trainer.accelerator=gpu", "trainer.max_epochs=6", "trainer.resume_interval_s=0", "trainer.ema_decay=0.8",
    "trainer.accumulation=2", "trainer.gradient_checkpointing=true", "augmentation=mixup",
]  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("strategy", ["full", "lp_ft", "gradual_unfreezing", "norm_only"])
def test_every_precision_trains_what_the_plan_says(tiny, tmp_path, strategy, precision):
    """The freeze audit runs in each."""
    record = run(tiny(*EVERYTHING, f"trainer.precision={precision}", f"freeze_strategy={strategy}"), tmp_path)
    assert record.environment["precision"] == precision
    assert torch.cuda.get_device_name() in record.environment["device"]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "checkpoint.safetensors").values())


def test_a_resumed_run_ends_where_the_whole_one_does(tiny, tmp_path, monkeypatch):
    cfg = tiny(*EVERYTHING, "trainer.precision=32-true", "freeze_strategy=lp_ft")
    killed_at(cfg, tmp_path / "cut", 2 * 13, monkeypatch)
    run(cfg, tmp_path / "cut")
    run(cfg, tmp_path / "whole")
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("cut", "whole"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_a_compiled_step_trains_every_phase(tiny, tmp_path):
    run(tiny("trainer.accelerator=gpu", "freeze_strategy=lp_ft", "trainer.compile_backend=aot_eager"), tmp_path)


def _weights(folder):
    return load_file(folder / "checkpoint.safetensors")


def _close(one, two, *, rtol=1e-3, atol=1e-4):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=rtol, atol=atol)


GPU = ["trainer.accelerator=gpu", "trainer.precision=32-true", "backbone.preprocessing.image_size=64"]


@pytest.mark.parametrize("hold", ["null", "0"], ids=["held", "read"])
def test_a_cached_phase_trains_like_a_live_one(tiny, tmp_path, hold):
    """On activations in the device's memory, and on those that are copied to it for each batch."""
    options = [*GPU, "freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "trainer.max_epochs=4"]
    cached = run(tiny(*options, f"feature_cache.hold_max_bytes={hold}"), tmp_path / "cached")
    live = run(tiny(*options, "feature_cache=off"), tmp_path / "live")
    assert (cached.work["cached_phases"], live.work["cached_phases"]) == ([0], [])
    _close(_weights(tmp_path / "cached"), _weights(tmp_path / "live"))


@pytest.mark.parametrize("trainer", [["trainer=default"], ["trainer=ddp", "trainer.devices=1"]], ids=str)
def test_every_cached_phase_is_encoded_on_the_device(tiny, tmp_path, trainer):
    record = run(tiny(*trainer, *GPU, "freeze_strategy=gradual_unfreezing", "trainer.max_epochs=16"), tmp_path)
    assert len(record.work["cached_phases"]) > 2


def test_heads_together_are_heads_alone(tiny, tmp_path):
    jobs = [
        (tiny(*GPU, "freeze_strategy=feature_extraction", f"optimizer.lr={rate}"), tmp_path / str(number))
        for number, rate in enumerate((1e-2, 1e-3, 1e-4))
    ]
    ended = []
    run_together(jobs, ALONE, lambda position, state, cause, seconds: ended.append((position, state)))
    assert sorted(ended) == [(0, "ok"), (1, "ok"), (2, "ok")]
    for number, (cfg, folder) in enumerate(jobs):
        run(cfg, tmp_path / f"alone {number}")
        _close(_weights(folder), _weights(tmp_path / f"alone {number}"))


def test_bf16_features_give_a_finite_head(tiny, tmp_path):
    cfg = tiny(*GPU[:1], GPU[2], "trainer.precision=bf16-mixed", "freeze_strategy=feature_extraction")
    record = run(cfg, tmp_path)
    assert record.environment["precision"] == "bf16-mixed"
    assert all(torch.isfinite(tensor).all() for tensor in _weights(tmp_path).values())


@pytest.mark.parametrize("augmentation", ["none", "flip_crop", "trivial", "mixup", "cutmix"])
@pytest.mark.parametrize("hold", [10**9, 0], ids=["held", "pinned"])
def test_batches_are_made_on_the_device(tiny, augmentation, hold):
    """Near those of the CPU; what is decoded is decoded once, and wherever it is held it is the same to the bit."""
    cfg = tiny(*GPU, f"augmentation={augmentation}", "dataset.shots=8")
    data = [build(cfg).data for _ in range(3)]
    data[0].serve(torch.device("cuda"), hold)
    data[1].serve(torch.device("cuda"), 10**9 - hold)
    batches = [[*each.train_batches(0, 2 * each.steps_per_epoch)] for each in data]
    for mine, other, cpu in zip(*batches, strict=True):
        assert mine["image"].is_cuda
        assert mine["label"].is_cuda
        assert torch.equal(mine["image"], other["image"])
        assert torch.equal(mine["index"].cpu(), cpu["index"])
        if augmentation in ("none", "flip_crop"):
            difference = (mine["image"].cpu().float() - cpu["image"].float()).abs().mean()
            assert difference <= (0 if augmentation == "none" else 1.5)
    assert data[0].images_decoded == data[0].spec.sizes["train"]


@pytest.mark.parametrize("augmentation", ["none", "flip_crop"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_live_run_on_held_images_is_resumed(tiny, tmp_path, monkeypatch, precision, augmentation):
    cfg = tiny(
        "trainer.accelerator=gpu", "trainer.max_epochs=4", "trainer.resume_interval_s=0", "freeze_strategy=full",
        f"trainer.precision={precision}", f"augmentation={augmentation}", "feature_cache=off",
    )  # fmt: skip
    killed_at(cfg, tmp_path / "cut", 7, monkeypatch)
    run(cfg, tmp_path / "cut")
    run(cfg, tmp_path / "whole")
    loose = precision != "32-true"
    rtol, atol = (0.1, 1e-2) if loose else (1e-3, 1e-4)
    _close(_weights(tmp_path / "cut"), _weights(tmp_path / "whole"), rtol=rtol, atol=atol)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_fused_optimizers_clip(tiny, tmp_path, optimizer, precision):
    """Lightning refuses to clip the gradients of an optimizer that would unscale them itself."""
    options = ["trainer.accelerator=gpu", f"optimizer={optimizer}", f"trainer.precision={precision}"]
    run(tiny(*options, "freeze_strategy=full", "trainer.gradient_clip_norm=1.0"), tmp_path)
    parameter = torch.nn.Parameter(torch.zeros(2, 2, device="cuda"))
    group = {"params": [parameter], "lr": 1.0, "weight_decay": 0.0}
    assert build_optimizer(tiny(*options).optimizer, [group]).defaults["fused"]


def test_a_probe_step_waits_for_nothing():
    """torch raises where Python reads a number from the device."""
    stack = ProbeStack(
        torch.zeros(3, 5, 16, device="cuda"), torch.zeros(3, 5, device="cuda"), AdamW(),
        weight_decay=[0.1] * 3, label_smoothing=[0.1] * 3, clip_norm=[1.0] * 3,
    )  # fmt: skip
    features, labels = torch.randn(8, 16, device="cuda"), torch.arange(8, device="cuda") % 5
    lr = torch.full((3,), 0.1, device="cuda")
    stack.step(features, labels, lr)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            stack.step(features, labels, lr)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_prefix_encodes_what_the_prefix_does(tiny, tmp_path, monkeypatch):
    """In a table of its own."""
    cfg = tiny(*GPU, "freeze_strategy=feature_extraction")
    run(cfg, tmp_path / "eager")
    monkeypatch.setattr(encoding, "_COMPILE_FROM", 0)
    record = run(cfg, tmp_path / "compiled")
    assert record.work["images_encoded"] > 0
    _close(_weights(tmp_path / "eager"), _weights(tmp_path / "compiled"), rtol=1e-2, atol=1e-3)
