"""Activations on disk cost no memory: what is anonymous stays as it is when there are eight times the images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tl_experiments.config import compose
from tl_experiments.training.run import run

SIZE = 128
MIB = 1 << 20


def photos(root, n):
    """Small files that become large images: ``n`` to train on, an eighth of it in val and in test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", n), ("val", n // 8), ("test", n // 8)):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for number in range(count // 2):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def peak(root, out, *overrides):
    """Most anonymous memory after any step of a run, and the bytes of its activations; in a process of its own."""
    code = f"from tests.training.test_disk_tier import child; child({str(root)!r}, {str(out)!r}, {list(overrides)!r})"
    # one arena: what threads' arenas keep for themselves is chance
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(int(word) for word in done.stdout.split()[-2:])


def child(root, out, overrides):
    cfg = compose(
        [
            *TINY,
            f"output_dir={out}",
            "dataset=image_folder",
            f"dataset.root={root}",
            "dataset.shots=null",
            f"backbone.preprocessing.image_size={SIZE}",
            "freeze_strategy=last_n_blocks",
            "trainer.eval_batch_size=8",
            *overrides,
        ]
    )
    seen = []
    record = run(cfg, progress=lambda *_: seen.append(anonymous()))
    assert record.work["cached_phases"] == [0]
    tables = [path.stat().st_size for path in Path(out, ".cache").rglob("*") if path.is_file()]
    sys.stdout.write(f"{max(seen)} {sum(tables)}\n")


def anonymous():
    """RssAnon of this process in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read RssAnon from")
def test_memory_stays_flat_from_n_to_8_n_images(tmp_path):
    few, many = photos(tmp_path / "few", 64), photos(tmp_path / "many", 512)
    on_disk = "feature_cache.hold_max_bytes=0"
    small, small_bytes = peak(few, tmp_path / "out-few", on_disk)
    large, large_bytes = peak(many, tmp_path / "out-many", on_disk)
    assert large_bytes - small_bytes > 40 * MIB  # decoded images and activations: it would show
    assert large - small < 10 * MIB  # 2% of what the libraries take
