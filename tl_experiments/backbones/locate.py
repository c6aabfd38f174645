"""Where ``backbone.weights`` is on disk, without torch: paths, hashes, and what a folder of an earlier run says."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from tl_experiments.errors import WeightsError

CHECKPOINT_FILE = "checkpoint.safetensors"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def locate(weights: str) -> Path | None:
    """The file that ``backbone.weights`` names; None for ``pretrained`` and ``random``.

    A folder is an earlier run, or a sweep with exactly one finished run.

    Raises:
        WeightsError: No such file, a folder without a single checkpoint, or an unknown kind of file.
    """
    if weights in ("pretrained", "random"):
        return None
    path = Path(os.path.expandvars(weights)).expanduser()
    if path.is_dir():
        found = [
            file for file in (path / CHECKPOINT_FILE, *sorted(path.glob(f"*/{CHECKPOINT_FILE}"))) if file.is_file()
        ]
        if len(found) == 1:
            return found[0]
        which = f" ({', '.join(str(file.parent) for file in found[:3])})" if found else ""
        raise WeightsError(
            "backbone.weights",
            f"{len(found)} checkpoints in {path}{which}, expected one",
            "name the folder of a single run",
        )
    if not path.is_file():
        raise WeightsError(
            "backbone.weights",
            f"no file {path}",
            "give pretrained, random, a .safetensors or .pth file, or a run's folder",
        )
    if path.suffix not in _SUFFIXES:
        raise WeightsError("backbone.weights", f"{path} is of no known kind", f"expected {', '.join(_SUFFIXES)}")
    return path


def weights_digest(weights: str) -> str:
    """``pretrained``, ``random``, or the sha256 of the file."""
    path = locate(weights)
    if path is None:
        return weights
    stat = path.stat()
    return _sha256(path, (stat.st_size, stat.st_mtime_ns))


@cache
def _sha256(path: Path, _state: tuple[int, int]) -> str:
    """Hash of a file; its size and time are arguments so that a changed file is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
