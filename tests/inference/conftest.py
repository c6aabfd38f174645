"""Runs to use, made once: every kind of head, a net with BatchNorm and one with a fixed input size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tl_experiments import compose, run

VIT = ["backbone=timm", "backbone.name=test_vit", "backbone.preprocessing.image_size=64"]
RUNS = {
    "linear": [],
    "full": ["freeze_strategy=full", "dataset.shots=5", "trainer.max_epochs=6"],
    "ema": ["freeze_strategy=full", "trainer.ema_decay=0.9", "trainer.memory_format=channels_last"],
    "vit": [*VIT, "freeze_strategy=full"],
    "knn": ["head=knn"],
    "ridge": ["head=ridge", "backbone.preprocessing.crop_fraction=0.8"],
    "logistic": ["head=logistic"],
    "mlp": ["head=mlp", "backbone.preprocessing.interpolation=bicubic"],
    "cosine": ["head=cosine"],
    "attention_pool": [*VIT, "head=attention_pool", "head.num_heads=4"],
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Callable[..., Path]:
    """``finished("knn")``: the folder of a run that is made when it is first asked for; nobody may change it."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            run(compose([*TINY, f"output_dir={folder / 'outputs'}", *RUNS[name]]), folder / name)
        return folder / name

    return make


@pytest.fixture
def pictures(tmp_path) -> Callable[..., list[Path]]:
    """``pictures(n)``: files of colour noise in several shapes and formats."""

    def make(n: int, folder: str = "pictures") -> list[Path]:
        rng = np.random.default_rng(0)
        (tmp_path / folder).mkdir()
        paths = []
        for number in range(n):
            shape = [(40, 60, 3), (64, 30, 3), (33, 33, 3)][number % 3]
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(shape[1::-1], Image.Resampling.BICUBIC)
            paths.append(tmp_path / folder / f"{number:04}.{'png' if number % 2 else 'jpg'}")
            image.save(paths[-1])
        return paths

    return make
