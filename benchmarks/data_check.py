"""Checking a folder of 10,000 photos: every file decoded once, then remembered.

    python benchmarks/data_check.py    # about 3 minutes; 300 MB

The photos are written on the spot, about 500x375 px of smooth shapes and noise, so that they compress like real ones.
The process has two cores. The second check is a fresh process too: what it knows, it knows from the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from measure import Report, Row, arguments, fix_threads, spread

IMAGES, CLASSES = 10_000, 10
TARGETS_S = {"first": 60.0, "second": 2.0}
CHECK = """
import json, sys, time
from pathlib import Path
from tl_experiments.data.broken import bad_images
from tl_experiments.data.image_folder import open_image_folder
started = time.perf_counter()
source = open_image_folder(sys.argv[1], False, digests=Path(sys.argv[2]))
bad = bad_images(source)
checked = time.perf_counter()
source.fingerprint
done = time.perf_counter()
counts = {"bad": len(bad), "n": len(source.items)}
print(json.dumps({"seconds": checked - started, "fingerprint": done - checked, **counts}))
"""


def write_photo(path: Path, seed: int) -> None:
    """Blurred noise at three scales under a little fine noise: about 60 kB at quality 85."""
    rng = np.random.default_rng(seed)
    width, height = (500, 375) if rng.random() < 0.7 else (375, 500)
    pixels = np.zeros((height, width, 3), np.float32)
    for scale, strength in ((8, 120), (32, 60), (128, 20)):
        coarse = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) * (strength / 255)
    pixels += rng.normal(0, 6, pixels.shape)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.SMOOTH).save(path, quality=85)


def write_folder(root: Path, images: int) -> None:
    """So many photos in classes."""
    for label in range(CLASSES):
        (root / f"class_{label}").mkdir(parents=True, exist_ok=True)
    paths = [root / f"class_{number % CLASSES}" / f"{number:05d}.jpg" for number in range(images)]
    with ProcessPoolExecutor() as processes:
        list(processes.map(write_photo, paths, range(images), chunksize=100))


def check(root: Path, memory: Path) -> dict[str, float]:
    """In a fresh process on two cores."""
    call = [sys.executable, "-c", CHECK, str(root), str(memory)]
    return json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--folder", type=Path, help="where to write the photos; they are kept")
    given = parser.parse_args()
    images = 1000 if given.short else IMAGES
    fix_threads(2)
    folder = given.folder or Path(tempfile.mkdtemp())
    root = folder / f"photos_{images}"
    if not root.is_dir():
        write_folder(root, images)
    report = Report("data_check", given.short)
    times: dict[str, list[float]] = {"first": [], "second": []}
    for number in range(given.repeats):
        memory = folder / f"memory_{os.getpid()}_{number}"
        for which in times:
            found = check(root, memory)
            assert (found["n"], found["bad"]) == (images, 0), found
            times[which].append(found["seconds"])
            report.details.setdefault(which, []).append(found)
        report.details["memory_bytes"] = sum(path.stat().st_size for path in memory.iterdir())
        shutil.rmtree(memory)
    report.details["bytes"] = sum(path.stat().st_size for path in root.rglob("*.jpg"))
    for which, seconds in times.items():
        report.add(
            Row(
                bar="",
                what=f"check of {images:,} photos of about 500x375 px, the {which} time",
                peer="",
                **spread(seconds),
                sense="<=",
                target=None if given.short else TARGETS_S[which],
                unit="s",
                remark="two cores, files in the system's cache",
            )
        )
    report.write()
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
