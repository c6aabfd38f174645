"""Every image file decoded once before training, with the sha256 of the same bytes; and what becomes of broken ones."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from tl_experiments import interrupt
from tl_experiments.data.decode import (
    ARRAY_FORMAT,
    TooLargeError,
    check_channels,
    is_array,
    load_image,
    open_image,
    read_array,
    reason,
    to_rgb,
)
from tl_experiments.data.digests import Remembered, file_digests, recall
from tl_experiments.data.items import Checked, Picture, Source
from tl_experiments.data.originals import decoding_threads
from tl_experiments.errors import DataError

logger = logging.getLogger(__name__)

IN_MEMORY = "in memory"  # the format of what is no file
_MAKER = f"1 {PIL.__version__}"  # of the facts; those of another are found out again
_IN_MEMORY = 64_000_000  # bytes of a file up to which it is read once, for digest and pixels
_MANY = 1000  # files whose reading takes long enough to say so
_LARGE = 20_000_000  # pixels from which images are decoded one at a time: each takes up to 12 bytes a pixel
_one_large_at_a_time = threading.Lock()
_SIDE, _KEPT = 32, 8  # of the grey image whose frequencies make the signature, and of those frequencies
_LEAST_CONTRAST = 1.0

# width, height, mode, format, signature, problem, and the pixels of an image that was too large to be decoded
_Facts = tuple[int, int, str, str, str | None, str | None, int | None]


class Files:
    """The image files of a source.

    Args:
        root: That the paths are relative to.
        paths: Of the files, in the order of the items.
        channels: That every image is loaded with; see ``load_image``.
        max_pixels: Of the largest image.
        memory: Folder in which what is found is remembered; None reads every file anew.
    """

    def __init__(self, root: Path, paths: Sequence[str], channels: int, max_pixels: int, memory: Path | None) -> None:
        self._root, self._paths, self._memory = root, tuple(paths), memory
        self._channels, self._max_pixels = channels, max_pixels

    def load(self, index: int) -> Picture:
        """As ``Source.load``."""
        return load_image(self._root / self._paths[index], self._channels, self._max_pixels)

    def digests(self) -> list[bytes]:
        """As ``Source.contents``: files are read, but not decoded, unless they have been already."""
        if "_checked" in self.__dict__ and all(one.digest for one in self._checked):
            return [bytes.fromhex(one.digest) for one in self._checked]
        return file_digests(self._root, self._paths, self._memory)

    def check(self) -> tuple[Checked, ...]:
        """As ``Source.check``: each file is read once, and remembered."""
        return self._checked

    @cached_property
    def _checked(self) -> tuple[Checked, ...]:
        started, read = time.perf_counter(), 0

        def inspected(path: str) -> tuple[str, tuple[Any, ...]]:
            nonlocal read
            read += 1
            if read == _MANY:
                logger.info("data      %s: images are read and decoded once, to find broken ones", self._root)
            digest, facts = _inspect_file(self._root / path, self._max_pixels)
            return digest, (_MAKER, *facts)

        found = recall(self._root, self._paths, self._memory, partial(_suffices, self._max_pixels), inspected)
        if read >= _MANY:
            logger.info("data      %d images decoded in %.0f s", read, time.perf_counter() - started)
        where = (os.path.join(self._root, path) for path in self._paths)
        return _judged(where, found, self._channels, self._max_pixels)


def check_bytes(
    names: Sequence[str], read: Callable[[int], bytes], channels: int, max_pixels: int, memory: Path | None, table: Path
) -> tuple[Checked, ...]:
    """``Files.check`` for images that stand in a table instead of files of their own.

    Args:
        names: What errors call each of them.
        read: Position -> the bytes of the encoded image.
        channels: As in ``Files``.
        max_pixels: Likewise.
        memory: Likewise; what is remembered goes by the bytes' sha256.
        table: Where they stand; names them in the memory.
    """
    with ThreadPoolExecutor(decoding_threads()) as threads:
        digests = list(threads.map(lambda index: hashlib.sha256(read(index)).hexdigest(), range(len(names))))
    position = {digest: index for index, digest in enumerate(digests)}

    def inspected(digest: str) -> tuple[str, tuple[Any, ...]]:
        data = read(position[digest])
        return digest, (_MAKER, *_inspect(io.BytesIO(data), len(data), max_pixels))

    suffices = partial(_suffices, max_pixels)
    found = recall(table, digests, memory, suffices, inspected, look=lambda _: (0, 0, 0, 0))
    return _judged(names, found, channels, max_pixels)


def check_loaded(source: Source) -> tuple[Checked, ...]:
    """What can be told of items that are no files: each is loaded once, and its digest is that of its pixels."""
    checked = []
    for index, item in enumerate(source.items):
        interrupt.check()
        try:
            picture = source.load(index)
        except DataError as error:
            checked.append(Checked(item.id, "", 0, 0, "", "", None, error.what))
            continue
        array = np.asarray(picture)
        mode = picture.mode if isinstance(picture, Image.Image) else str(array.shape[2])
        grey = picture if isinstance(picture, Image.Image) else Image.fromarray(array[:, :, 0])
        bits, digest = _signature(grey), hashlib.sha256(array.tobytes()).hexdigest()
        number = None if bits is None else int(bits, 16)
        checked.append(Checked(item.id, digest, array.shape[1], array.shape[0], mode, IN_MEMORY, number, None))
    return tuple(checked)


def _suffices(max_pixels: int, entry: Remembered) -> bool:
    if entry.facts is None or entry.facts[0] != _MAKER:
        return False
    refused = entry.facts[-1]
    return refused is None or refused > max_pixels


def _judged(paths: Iterable[str], found: Sequence[Remembered], channels: int, max_pixels: int) -> tuple[Checked, ...]:
    """What is true of the files, seen with the dataset's channels and limit."""
    checked = []
    for path, entry in zip(paths, found, strict=True):
        assert entry.facts is not None
        width, height, mode, form, signature, problem, refused = entry.facts[1:]
        pixels = width * height if refused is None else refused
        if pixels > max_pixels:
            problem = str(TooLargeError(pixels, max_pixels))
        elif problem is None:
            problem = _wrong_channels(mode, form, channels)
        number = None if signature is None else int(signature, 16)
        checked.append(Checked(path, entry.digest, width, height, mode, form, number, problem))
    return tuple(checked)


def _wrong_channels(mode: str, form: str, channels: int) -> str | None:
    try:
        check_channels(int(mode) if form == ARRAY_FORMAT else None, channels)
    except ValueError as error:
        return str(error)
    return None


def _inspect_file(path: Path, max_pixels: int) -> tuple[str, _Facts]:
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            bytes_once: io.BytesIO | io.BufferedReader = io.BytesIO(stream.read()) if size <= _IN_MEMORY else stream
            digest = hashlib.file_digest(bytes_once, "sha256").hexdigest()
            bytes_once.seek(0)
            return digest, _inspect(bytes_once, size, max_pixels)
    except OSError as error:
        return "", (0, 0, "", "", None, f"cannot be read ({error.strerror})", None)


def _inspect(stream: BinaryIO, size: int, max_pixels: int) -> _Facts:
    """Decode a file to the last pixel."""
    width, height, mode, form = 0, 0, "", ""
    try:
        if is_array(stream):
            array = read_array(stream, max_pixels)
            grey = Image.fromarray(array[:, :, 0])
            return array.shape[1], array.shape[0], str(array.shape[2]), ARRAY_FORMAT, _signature(grey), None, None
        with open_image(stream, max_pixels) as image:
            (width, height), mode, form = image.size, image.mode, image.format or ""
            with _one_large_at_a_time if width * height > _LARGE else nullcontext():
                return width, height, mode, form, _signature(to_rgb(image)), None, None
    except MemoryError:
        raise
    except TooLargeError as error:
        return 0, 0, mode, form, None, None, error.pixels
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        return width, height, mode, form, None, f"cannot be decoded: {reason(error, size)}", None


def _cosines() -> NDArray[np.float64]:
    """The first rows of the orthonormal DCT-II, ``(8, 32)``."""
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)
    rows = np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _cosines()


def _signature(image: Image.Image) -> str | None:
    """pHash (Zauner, 2010): signs of the 8x8 lowest frequencies of 32x32 grey pixels against their median.

    Returns:
        64 bits as hexadecimal digits; None of an image with less than a grey level of contrast, whose bits are noise.
    """
    small = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < _LEAST_CONTRAST:
        return None
    lowest = (_DCT @ small @ _DCT.T).ravel()
    bits = lowest > np.median(lowest[1:])  # the first is the mean
    return np.packbits(bits).tobytes().hex()
