"""Small datasets made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_experiments.config.datasets import Digits, ImageFolder

MakeFolder = Callable[[Mapping[str, int]], Path]

OPTIONS = {
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "split_seed": 0,
    "label_fraction": None,
    "shots": None,
    "subset_seed": None,
    "folds": None,
    "fold": 0,
    "tests": {},
    "sampling": "uniform",
    "on_bad": "error",
    "max_pixels": 100_000_000,
    "preload_max_bytes": 10**9,
}


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write random 20x16 PNGs: ``{"train/ants": 3}`` makes ``train/ants/0.png`` to ``2.png``."""

    def make(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "photos"
        root.mkdir(exist_ok=True)
        for number, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng([number, index]).integers(0, 256, (16, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{index}.png")
        return root

    return make


@pytest.fixture
def digits_cfg() -> Callable[..., Digits]:
    return lambda **options: Digits(name="digits", **{**OPTIONS, **options})


@pytest.fixture
def folder_cfg() -> Callable[..., ImageFolder]:
    return lambda root, **options: ImageFolder(
        name="image_folder", **{**OPTIONS, "root": str(root), "allow_empty": False, "channels": 3, **options}
    )
