"""What is known of files, above all their sha256, remembered from job to job as long as they look untouched."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.errors import DataError, StorageError
from tl_experiments.records import write_atomically

logger = logging.getLogger(__name__)

_THREADS = 8  # hashing and decoding release the GIL and wait for the disk
_PIECE = 256  # files between two looks for a signal
_SETTLED_NS = (
    2_000_000_000  # a file changed later than this before it was read could change again within its time stamp
)

Look = tuple[int, int, int, int]
_UNSETTLED = (-1, -1, -1, -1)  # looks like no file


@dataclass(frozen=True)
class Remembered:
    """One file.

    Args:
        look: By which it is seen to be untouched.
        digest: sha256 as hexadecimal digits; empty where it could not be read.
        facts: What else was found out when it was read, as plain values; None if nothing was asked.
    """

    look: Look
    digest: str
    facts: tuple[Any, ...] | None = None


_Known = dict[str, Remembered]  # path -> what is known


def file_digests(root: Path, paths: Sequence[str], memory: Path | None) -> list[bytes]:
    """sha256 of each file, in order; see ``recall``.

    Raises:
        DataError: A file cannot be read.
    """
    found = recall(root, paths, memory, lambda _: True, lambda path: (_sha256(root / path), None))
    return [bytes.fromhex(entry.digest) for entry in found]


def recall(
    root: Path,
    paths: Sequence[str],
    memory: Path | None,
    suffices: Callable[[Remembered], bool],
    read: Callable[[str], tuple[str, tuple[Any, ...] | None]],
    look: Callable[[Path], Look] | None = None,
) -> list[Remembered]:
    """What is known of each file, in order; what is not is found out, by several threads.

    A file whose size, inode and times of change are those of an earlier call is not read again. Several processes may
    do this at once; at worst a file is read once more. Where other files or contents are found than the last time, one
    line of the log says so.

    Args:
        root: That the paths are relative to.
        paths: Of the files.
        memory: Folder in which to remember, a file for each root; None reads every file.
        suffices: Whether what is remembered of an untouched file is enough.
        read: One of ``paths`` -> digest and facts.
        look: Of what is no file: by which it is seen to be untouched.

    Raises:
        Interrupted: A signal has asked for it; what was found until then is kept.
    """
    known = _load(memory, root)
    now_ns = time.time_ns()
    seen: _Known = {}

    look = look or _look

    def entry_of(path: str) -> Remembered:
        found, entry = look(root / path), known.get(path)
        if entry is not None and entry.look == found and suffices(entry):
            return entry
        return Remembered(found, *read(path))

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            for start in range(0, len(paths), _PIECE):
                interrupt.check()
                piece = paths[start : start + _PIECE]
                seen.update(zip(piece, threads.map(entry_of, piece), strict=True))
    finally:
        if memory is not None:
            _remember(memory, root, known, seen, now_ns, whole=len(seen) == len(set(paths)))
    return [seen[path] for path in paths]


def _look(path: Path) -> Look:
    """Size, times of change, inode. Tools that copy set the first time; the second, of the inode, is the system's."""
    try:
        status = os.stat(path)
    except OSError:  # reading will say what is wrong with it
        return _UNSETTLED
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})", "replace or remove the file") from error


def _remember(memory: Path, root: Path, known: _Known, seen: _Known, now_ns: int, whole: bool) -> None:
    """Write down what is new; what another dataset has read below the same root stays, unless its file is gone."""
    settled = {
        path: entry if entry.look[2] < now_ns - _SETTLED_NS else replace(entry, look=_UNSETTLED)
        for path, entry in seen.items()
    }
    others = {path: entry for path, entry in known.items() if path not in seen and (root / path).exists()}
    now = {**others, **settled}
    if now == known:
        return
    if whole:
        _say_what_changed(root, known, now)
    _save(memory, root, now)


def _say_what_changed(root: Path, known: _Known, now: _Known) -> None:
    changes = {
        "changed": sum(path in known and known[path].digest != entry.digest for path, entry in now.items()),
        "came": len(now.keys() - known.keys()),
        "went": len(known.keys() - now.keys()),
    }
    if known and any(changes.values()):
        what = ", ".join(f"{number} {verb}" for verb, number in changes.items() if number)
        logger.info("data      %s: %s since it was last read; what was kept of its images serves no more", root, what)


def _file(memory: Path, root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return memory / f"{name}.json"


def _load(memory: Path | None, root: Path) -> _Known:
    """What is remembered; nothing where the file is missing or damaged."""
    if memory is None:
        return {}
    try:
        content = json.loads(_file(memory, root).read_text(encoding="utf-8"))["files"]
        return {
            os.fsdecode(bytes.fromhex(path)): Remembered(
                (size, modified, changed, inode), digest, tuple(facts[0]) if facts else None
            )
            for path, (size, modified, changed, inode, digest, *facts) in content.items()
            if len(bytes.fromhex(digest)) == hashlib.sha256().digest_size
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(memory: Path, root: Path, known: _Known) -> None:
    # names need not be UTF-8; what an earlier version remembered has no facts
    content = {
        os.fsencode(path).hex(): [*entry.look, entry.digest, *([entry.facts] if entry.facts else [])]
        for path, entry in known.items()
    }
    with suppress(OSError, StorageError):  # it is read again the next time
        write_atomically(_file(memory, root), json.dumps({"root": str(root), "files": content}))
