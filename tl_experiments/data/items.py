"""What every dataset is, before splits and transforms: named items with labels, and a way to load one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = str  # one of SPLITS, or ``test/<name>`` of a further test set
Picture = Image.Image | NDArray[np.uint8]  # of mode L, RGB or RGBA, or (height, width, channels)
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Args:
        id: Unique within its source and the same on every machine: a path relative to the root, or ``digits/17``.
        label: Position in the source's ``classes``.
        split: The split it comes in, or None where the source is not split.
    """

    id: str
    label: int
    split: Split | None = None


@dataclass(frozen=True)
class Checked:
    """What reading and decoding the file of an item once has told.

    Args:
        path: Where it is, for who looks for it.
        digest: sha256 of its bytes, as hexadecimal digits; empty where it cannot be read.
        width: In pixels, as stored; 0 where no header could be read.
        height: Likewise.
        mode: Pillow's name, for example ``RGB``; of an array its number of channels.
        format: For example ``JPEG``, ``NPY`` of an array; empty where there is none that is read.
        signature: Perceptual hash of 64 bits; None of an image that cannot be decoded, or has nothing to tell it by.
        problem: Why it cannot be used, in a few words; None where it can.
    """

    path: str
    digest: str
    width: int
    height: int
    mode: str
    format: str
    signature: int | None
    problem: str | None


@dataclass(frozen=True)
class Source:
    """A dataset as it stands, in an order that does not change from run to run.

    Args:
        classes: Class names; a label is a position in this tuple.
        items: All images. An item's position here is its ``index`` everywhere else.
        load: Position of an item -> its image, all of the same channels. Raises DataError where it cannot be decoded.
        contents: Reads every image's bytes, or a digest of them, in order; called only for the fingerprint.
        notes: What a reader of the results must know about the source.
        decoded_in_memory: Whether ``load`` only takes an image out of an array: nothing to gain from a cache.
        check: Reads and decodes every item once, in order, or remembers it; None where there are no files to be broken.
        skipped: Id -> reason, of items that were left out because they cannot be decoded.
    """

    classes: tuple[str, ...]
    items: tuple[Item, ...]
    load: Callable[[int], Picture]
    contents: Callable[[], Iterable[str | bytes]]
    notes: tuple[str, ...] = ()
    decoded_in_memory: bool = False
    check: Callable[[], Sequence[Checked]] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, item ids, labels and contents; the first use reads the whole dataset."""
        return source_fingerprint(self.classes, self.items, self.contents())


def fingerprint(*parts: Iterable[str | bytes]) -> str:
    """sha256 over sequences of text or bytes, as hexadecimal digits.

    Each entry goes in with its length and each sequence with its end, so that ``["ab"]`` and ``["a", "b"]`` differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        for entry in part:
            # file names that are not UTF-8 reach us with surrogates
            data = entry if isinstance(entry, bytes) else entry.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        digest.update(b"\xff" * 8)
    return digest.hexdigest()


def source_fingerprint(classes: Iterable[str], items: Sequence[Item], contents: Iterable[str | bytes]) -> str:
    """The fingerprint of a source; ``contents`` holds each item's bytes, or a digest of them, in order."""
    return fingerprint(classes, (item.id for item in items), (str(item.label) for item in items), contents)


def pixels(images: NDArray[np.uint8], *beside: bytes) -> Iterator[bytes]:
    """The bytes of each image, after ``beside``: what else they depend on."""
    yield from beside
    yield from (image.tobytes() for image in images)


def grey_image(images: NDArray[np.uint8], index: int) -> Image.Image:
    """One of ``images``, uint8 ``(n, height, width)``, as RGB."""
    return Image.fromarray(images[index]).convert("RGB")
