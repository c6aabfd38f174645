"""Images and labels as arrays of one ``.npz`` file: MedMNIST, Keras' files, one's own."""

from __future__ import annotations

import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_experiments.data.decode import MAX_PIXELS
from tl_experiments.data.digests import file_digests
from tl_experiments.data.items import SPLITS, Item, Picture, Source, Split
from tl_experiments.data.labels import absent, check_classes, class_names, is_integer, listed, positions
from tl_experiments.errors import DataError, first_line
from tl_experiments.user_paths import expanded

_KEY = "dataset.path"
_ONE_AT_A_TIME = threading.Lock()
# The names that publishers give their arrays: split -> images, labels; MedMNIST's, Keras', without splits.
_LAYOUTS: tuple[Mapping[Split | None, tuple[str, str]], ...] = (
    {split: (f"{split}_images", f"{split}_labels") for split in SPLITS},
    {split: (f"x_{split}", f"y_{split}") for split in SPLITS},
    {None: ("x", "y")},
)
_EXPECTED = "train_images, train_labels (and val_*, test_*), or x_train, y_train (and x_val, x_test, ...), or x, y"


def open_npz(
    path: str,
    classes: Sequence[str] | None = None,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    digests: Path | None = None,
) -> Source:
    """Read the labels of the file; its images are read when the first one is asked for.

    Images that the file holds uncompressed are mapped, not read. Pickles in it are never loaded.

    Args:
        path: The file; ``~`` and environment variables are expanded. Images are uint8 ``(n, height, width)``, or with
            1, 3 or ``channels`` channels last; labels, integers or text, are ``(n,)`` or ``(n, 1)``.
        classes: Class names in label order, integer labels being positions in them; None takes the labels of train, in
            numerical order where they are integers.
        channels: 3 makes grey images colour, 1 colour images grey; of images with other channels, how many they have.
        max_pixels: Of an image.
        digests: Folder in which the file's digest is remembered; None reads the file for the fingerprint.

    Raises:
        DataError: The file cannot be read or has none of these arrays, or others than these; labels are missing,
            several an image or unknown; there are fewer than two classes.
    """
    file = expanded(path)
    members = _members(file)
    layout = next((layout for layout in _LAYOUTS if next(iter(layout.values()))[0] in members), None)
    if layout is None:
        raise DataError(_KEY, f"{file} has {listed(members) or 'no arrays'}, expected {_EXPECTED}", "rename its arrays")
    words: dict[Split | None, list[str]] = {}
    parts: list[_Array] = []
    for split, (images, labels) in layout.items():
        if images not in members:
            continue
        _check_images(members[images], channels, max_pixels)
        parts.append(members[images])
        words[split] = _labels(file, members, labels, parts[-1])
    trained = next(iter(words.values()))
    names = class_names(trained) if classes is None else tuple(classes)
    check_classes(str(file) if classes is None else "dataset.classes", names)
    label = positions((word for split in words.values() for word in split), names)
    items = []
    for split, texts in words.items():
        for number, word in enumerate(texts):
            if word not in label:
                expected = f"0 to {len(names) - 1}" if not is_integer(names[0]) and is_integer(word) else listed(names)
                what = f"{layout[split][1]}[{number}] is {word!r}, expected {expected}"
                raise DataError(str(file), what, "correct it, or dataset.classes (without it: the labels of train)")
            items.append(Item(f"{split or 'all'}/{number:05d}", label[word], split))
    return Source(
        names,
        tuple(items),
        partial(_load, tuple(parts), channels),
        partial(file_digests, file, (".",), digests),
        tuple(absent(names, {label[word] for word in trained})),
        decoded_in_memory=True,
    )


@dataclass(frozen=True)
class _Array:
    """An array of the file, of which only the header is read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    map_from: int | None  # byte of the file where its values begin; None where they are compressed

    @property
    def values(self) -> NDArray[np.generic]:
        """All of it; read by the first of the threads that want it."""
        with _ONE_AT_A_TIME:
            return self._values

    @cached_property
    def _values(self) -> NDArray[np.generic]:
        if self.map_from is not None:
            return np.memmap(self.file, self.dtype, "r", self.map_from, self.shape)
        with _reading(self.file), np.load(self.file, allow_pickle=False) as arrays:  # a pickle would run code
            return arrays[self.name]


def _members(file: Path) -> dict[str, _Array]:
    with _reading(file), zipfile.ZipFile(file) as archive:
        return {
            entry.filename.removesuffix(".npy"): _member(file, archive, entry)
            for entry in archive.infolist()
            if entry.filename.endswith(".npy")
        }


def _member(file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Array:
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        size = stream.tell()
    stored = entry.compress_type == zipfile.ZIP_STORED and not fortran and shape and 0 not in shape
    start = _start(file, entry) + size if stored else None
    return _Array(file, entry.filename.removesuffix(".npy"), shape, dtype, start)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _start(file: Path, entry: zipfile.ZipInfo) -> int:
    """Where an uncompressed entry's bytes begin: after its local header, 30 bytes, a name and an extra field."""
    with file.open("rb") as stream:
        stream.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", stream.read(4))
        return entry.header_offset + 30 + name + extra


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(_KEY, f"{file} cannot be read ({error.strerror or error})", "correct the path") from error
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise all kinds on damaged files
        raise DataError(_KEY, f"{file} is no readable .npz ({first_line(error)})", "replace the file") from error


def _check_images(member: _Array, channels: int, max_pixels: int) -> None:
    shape, known = member.shape, (1, 3, channels)
    if member.dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in known):
        what = (
            f"{member.name} is {member.dtype} {shape}, expected uint8 (n, height, width) or (n, height, width, 1 or 3)"
        )
        raise DataError(str(member.file), what, "store images so, or give dataset.channels where they have others")
    found = shape[3] if len(shape) == 4 else 1
    if channels not in (1, 3) and found != channels:
        what = f"{member.name} has {found} channels, expected {channels}"
        raise DataError(str(member.file), what, f"dataset.channels={found}")
    if shape[1] * shape[2] > max_pixels:
        what = f"images of {shape[2]} x {shape[1]} pixels, expected at most {max_pixels:,} in all"
        raise DataError(str(member.file), what, "raise dataset.max_pixels, or store them smaller")


def _labels(file: Path, members: Mapping[str, _Array], name: str, images: _Array) -> list[str]:
    if name not in members:
        raise DataError(str(file), f"{images.name} without {name}; it has {listed(members)}", f"add {name}")
    member, n = members[name], images.shape[0]
    if member.shape not in ((n,), (n, 1)):
        several = len(member.shape) == 2 and member.shape[0] == n
        what = f"{name} is {member.shape}, expected ({n},) or ({n}, 1), one class an image"
        raise DataError(
            str(file), f"{what}: several labels an image are not supported" if several else what, "correct it"
        )
    if member.dtype.kind not in "iuUb":
        raise DataError(
            str(file), f"{name} is {member.dtype}, expected integers or text", "store the classes as integers"
        )
    words = [str(word).strip() for word in member.values.reshape(n).tolist()]
    if "" in words:
        raise DataError(str(file), f"{name}[{words.index('')}] is empty, expected a class", "give a label")
    return words


def _load(parts: Sequence[_Array], channels: int, index: int) -> Picture:
    for part in parts:
        if index < part.shape[0]:
            array = np.asarray(part.values[index], np.uint8)
            break
        index -= part.shape[0]
    if channels not in (1, 3):
        return array
    grey = array.ndim == 2 or array.shape[2] == 1
    image = Image.fromarray(array.reshape(array.shape[:2]) if grey else array)
    return image.convert("L" if channels == 1 else "RGB")
