"""The images of the benchmarks: crops of real photos, as many as asked for, in class folders.

    TL_SHARED_DATA=... python benchmarks/photos.py FOLDER --train 1000 --val 200 --test 50

Every image is a random crop of one of the flower photos (five classes), enlarged to 500 x 375 pixels and encoded as
JPEG of quality 90: the size of file that a loader meets in practice, in the number that a bar asks for. Train, val and
test take their crops from different photos.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from PIL import Image

SIZE = (500, 375)
SETS = {"train": ("train", 0, 1), "val": ("val", 0, 2), "test": ("val", 1, 2)}  # (folder, first photo, every)


def origin() -> Path:
    """Where the photos are."""
    if "TL_SHARED_DATA" not in os.environ:
        raise SystemExit("TL_SHARED_DATA is not set: the benchmarks take their photos from there")
    return Path(os.environ["TL_SHARED_DATA"]) / "flowers5"


def make_photos(folder: Path, train: int, val: int, test: int) -> Path:
    """Make ``folder/<split>/<class>/*.jpg``; a folder that is there already is taken as it is.

    Args:
        folder: Of the set.
        train: Images over all classes; as for ``val`` and ``test``, at least one a class.
        val: See ``train``.
        test: See ``train``.
    """
    done = folder / "done"
    if done.exists():
        return folder
    for split, count in {"train": train, "val": val, "test": test}.items():
        where, first, every = SETS[split]
        classes = sorted(path.name for path in (origin() / where).iterdir() if path.is_dir())
        for number in range(count):
            name = classes[number % len(classes)]
            photos = sorted((origin() / where / name).iterdir())[first::every]
            turn = number // len(classes)
            target = folder / split / name / f"{turn:05d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            crop(photos[turn % len(photos)], random.Random(f"{split} {number}")).save(target, quality=90)
    done.touch()
    return folder


def crop(path: Path, rng: random.Random) -> Image.Image:
    """A random part of at least two thirds of each side, flipped or not."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = (round(side * rng.uniform(2 / 3, 1)) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    part = image.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.BICUBIC)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for split, count in {"train": 1000, "val": 200, "test": 50}.items():
        parser.add_argument(f"--{split}", type=int, default=count)
    given = parser.parse_args()
    make_photos(given.folder, given.train, given.val, given.test)
