"""Shared by all tests: small configs, real files where they are given, no network, one thread."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tl_experiments.cli import main
from tl_experiments.config import TrainConfig, compose

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the hub must fail at once, here and in CI alike

# Seconds matter: a net of 0.4 M parameters, two labels a class, images of 32 pixels.
TINY = [
    "backbone=test_resnet",
    "backbone.weights=random",
    "backbone.preprocessing.image_size=32",
    "dataset=digits",
    "dataset.shots=2",
    "trainer.max_epochs=2",
    "trainer.batch_size=8",
    "trainer.accelerator=cpu",
]


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """``tiny("freeze_strategy=full", ...)``: the config of a run that takes a second, writing below ``tmp_path``."""

    def make(*overrides: str) -> TrainConfig:
        return compose([*TINY, f"output_dir={tmp_path / 'outputs'}", *overrides])

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and weights; skips where they are not at hand."""
    folder = os.environ.get("TL_SHARED_DATA")
    if not folder:
        pytest.skip("TL_SHARED_DATA is not set: no real images and weights")
    return Path(folder)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No file finds room any more, until ``full_disk.undo()``."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    return monkeypatch


@pytest.fixture
def tl(capfd, monkeypatch, tmp_path):
    """Run a command in this process, in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tl", *map(str, arguments)])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return ended.value.code, captured.out, captured.err

    return call
