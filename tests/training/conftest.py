"""Shared by tests of training."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Our log's lines, each once, though an earlier test may have set up logging as a command does."""
    logger = logging.getLogger("tl_experiments")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("INFO", "tl_experiments")
    return caplog


UNEVEN = {"ants": 40, "bees": 10, "wasps": 4}


@pytest.fixture
def uneven(tmp_path: Path) -> list[str]:
    """Overrides of a dataset whose classes have 40, 10 and 4 training images, of noise around a shade."""
    rng = np.random.default_rng(0)
    counts = {("train", name): count for name, count in UNEVEN.items()}
    counts |= {(split, name): 4 for split in ("val", "test") for name in UNEVEN}
    for (split, name), count in counts.items():
        folder = tmp_path / "uneven" / split / name
        folder.mkdir(parents=True)
        shade = 60 + 70 * list(UNEVEN).index(name)
        for number in range(count):
            pixels = np.clip(rng.normal(shade, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return ["dataset=image_folder", f"dataset.root={tmp_path / 'uneven'}", "dataset.shots=null"]
