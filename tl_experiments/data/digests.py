"""sha256 of files, remembered from job to job as long as the files look untouched."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tl_experiments.errors import DataError, StorageError
from tl_experiments.records import write_atomically

logger = logging.getLogger(__name__)

_THREADS = 8  # hashing releases the GIL and waits for the disk
_SETTLED_NS = (
    2_000_000_000  # a file changed later than this before it was read could change again within its time stamp
)

_Look = tuple[int, int, int, int]
_UNSETTLED = (-1, -1, -1, -1)  # looks like no file
_Known = dict[str, tuple[_Look, str]]  # path -> its look and digest


def file_digests(root: Path, paths: Sequence[str], memory: Path | None) -> list[bytes]:
    """sha256 of each file, in order.

    A file whose size, inode and times of change are those of an earlier call is not read again. Several processes may
    do this at once; at worst a file is read once more. Where other files or contents are found than the last time, one
    line of the log says so.

    Args:
        root: That the paths are relative to.
        paths: Of the files.
        memory: Folder in which to remember, a file for each root; None reads every file.

    Raises:
        DataError: A file cannot be read.
    """
    known = _load(memory, root)
    now_ns = time.time_ns()

    def digest(path: str) -> tuple[str, _Look, str]:
        look = _look(root / path)
        entry = known.get(path)
        return path, look, entry[1] if entry is not None and entry[0] == look else _sha256(root / path)

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(digest, paths))
    seen = {path: (look if look[2] < now_ns - _SETTLED_NS else _UNSETTLED, text) for path, look, text in found}
    if memory is not None and seen != known:
        _say_what_changed(root, known, seen)
        _save(memory, root, seen)
    return [bytes.fromhex(text) for _, _, text in found]


def _look(path: Path) -> _Look:
    """Size, times of change, inode. Tools that copy set the first time; the second, of the inode, is the system's."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(str(path), f"cannot be read ({error.strerror})", "replace or remove the file")


def _say_what_changed(root: Path, known: _Known, seen: _Known) -> None:
    changes = {
        "changed": sum(path in known and known[path][1] != text for path, (_, text) in seen.items()),
        "came": len(seen.keys() - known.keys()),
        "went": len(known.keys() - seen.keys()),
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
            os.fsdecode(bytes.fromhex(path)): ((size, modified, changed, inode), digest)
            for path, (size, modified, changed, inode, digest) in content.items()
            if len(bytes.fromhex(digest)) == hashlib.sha256().digest_size
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(memory: Path, root: Path, known: _Known) -> None:
    # names need not be UTF-8
    content = {os.fsencode(path).hex(): [*look, digest] for path, (look, digest) in known.items()}
    with suppress(OSError, StorageError):  # it is read again the next time
        write_atomically(_file(memory, root), json.dumps({"root": str(root), "files": content}))
