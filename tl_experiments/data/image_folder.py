"""Images in one folder a class, split or not. Labels go by the class's name, never by a folder's position."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from tl_experiments.data.decode import load_rgb
from tl_experiments.data.items import SPLITS, Item, Source, Split, source_fingerprint
from tl_experiments.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
LAYOUT = "root/train|val|test/<class>/<image> or root/<class>/<image>"
_KEY = "dataset.root"
_HASHING_THREADS = 8  # hashing releases the GIL, and waits for the disk more than it computes


def open_image_folder(root: str, allow_empty: bool) -> Source:
    """Read ``root/train|val|test/<class>/*`` or ``root/<class>/*``.

    The splits' folders must have exactly these names. Images stand directly in their class's folder; files of other
    types and everything hidden (with a leading dot) are ignored. The classes are those of train, sorted as text.

    Args:
        root: The folder; ``~`` and environment variables are expanded.
        allow_empty: Leave out class folders without an image instead of refusing them.

    Raises:
        DataError: The root is missing, a file, empty or laid out otherwise; there is no train split; a class folder is
            empty; val or test has a class that train has not; there is only one class; a file cannot be read.
    """
    folder = Path(os.path.expandvars(root)).expanduser()
    scan = _scan(folder)
    trained = scan.classes("train") if scan.is_split else scan.classes(None)
    notes = _check(scan, trained, allow_empty)
    classes = tuple(name for name in trained if not allow_empty or scan.images[_train(scan), name])
    if len(classes) < 2:
        raise DataError(_KEY, f"{_train(scan) or folder} has 1 class ({_some(classes)}), expected 2 or more", "add a class")
    label = {name: number for number, name in enumerate(classes)}
    paths: list[str] = []
    items: list[Item] = []
    for (split, name), files in scan.images.items():
        for file in files:
            paths.append("/".join(part for part in (split, name, file) if part is not None))
            items.append(Item(paths[-1], label[name], split))
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        digests = list(threads.map(partial(_digest, folder), paths))
    return Source(classes, tuple(items), partial(_load, folder, paths), source_fingerprint(classes, items, digests), notes)
