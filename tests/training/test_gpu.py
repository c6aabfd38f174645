"""The paths that only a GPU takes: bf16, tensors on the device, resumes from files that were written there."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_resume import killed_at
from tl_experiments.training.run import run

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
