"""Where ``backbone.weights`` is on disk, without torch: paths, hashes, and what a folder of an earlier run says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tl_experiments.errors import WeightsError
from tl_experiments.records import RECORD_FILE
from tl_experiments.user_paths import expanded

CHECKPOINT_FILE = "checkpoint.safetensors"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The weights that a run started from; its checkpoint may hold only what differs from them.

    Args:
        weights: ``pretrained``, or the absolute path of the file.
        beside: The same path seen from the run's folder, for outputs that were moved as a whole; null for the hub.
        source: ``owner/repo/file`` on the hub, a URL or a path.
        commit: Of the hub's repository.
        sha256: Of the file.
    """

    weights: str
    beside: str | None
    source: str
    commit: str | None
    sha256: str


def locate(weights: str) -> Path | None:
    """The file that ``backbone.weights`` names; None for ``pretrained`` and ``random``.

    A folder is an earlier run, or a sweep with exactly one finished run.

    Raises:
        WeightsError: No such file, a folder without a single checkpoint, or an unknown kind of file.
    """
    if weights in ("pretrained", "random"):
        return None
    path = expanded(weights)
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
            "name the folder of a single run"
            if found
            else "name the folder of a run that kept one (trainer.checkpoint)",
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
    """``pretrained``, ``random``, or the sha256 of the file, whose bases are checked too.

    A checkpoint that holds a part of a model carries its base's hash inside, so that the base counts too.
    """
    path = locate(weights)
    if path is None:
        return weights
    check_chain(path)
    return file_sha256(path)


def check_chain(path: Path, instead: Path | None = None) -> None:
    """Every file that a checkpoint needs is there and is the same: told when a sweep is planned, not in its job 37.

    Args:
        path: Of the checkpoint.
        instead: As in ``base_of``.

    Raises:
        WeightsError: One is gone or another. A file of the hub is not looked for.
    """
    facts = checkpoint_facts(path)
    base = base_of(path, facts, instead) if facts is not None and facts["holds"] == "trained" else None
    if base is not None and base.beside is not None:
        check_base(base, file_sha256(Path(base.weights)))
        check_chain(Path(base.weights), instead)


def file_sha256(path: Path) -> str:
    """Hash of a file's content; a file of unchanged size and time is read once a process."""
    stat = path.stat()
    return _sha256(path, (stat.st_size, stat.st_mtime_ns))


@cache
def _sha256(path: Path, _state: tuple[int, int]) -> str:
    """Hash of a file; its size and time are arguments so that a changed file is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checkpoint_facts(path: Path) -> dict[str, Any] | None:
    """What stands beside a run's own checkpoint, in ``checkpoint.json``; None for any other file.

    Raises:
        WeightsError: The file is not the one described, or the description cannot be read.
    """
    side = path.with_suffix(".json")
    if path.name != CHECKPOINT_FILE or not side.is_file():
        return None
    facts = _json(side)
    if facts.get("sha256") != file_sha256(path):
        raise WeightsError(
            str(path), f"not the file that {side.name} describes (sha256)", "it is damaged: run its job again"
        )
    if missing := {"backbone", "kwargs", "input", "holds", "base"} - facts.keys():
        raise WeightsError(
            str(side), f"says nothing of {', '.join(sorted(missing))}", "another version wrote it: run its job again"
        )
    return facts


def base_of(path: Path, facts: Mapping[str, Any], instead: Path | None = None) -> Base | None:
    """What the run of a checkpoint started from, where that is now; None for random weights.

    Args:
        path: Of the checkpoint.
        facts: What stands beside it.
        instead: A file that is the base if its hash says so, wherever the run found it.

    Raises:
        WeightsError: A base that the checkpoint needs is gone.
    """
    if facts.get("base") is None:
        return None
    base = Base(**facts["base"])
    if instead is not None and file_sha256(instead) == base.sha256:
        return replace(base, weights=str(instead.absolute()), beside=str(instead))
    if base.beside is None or Path(base.weights).is_file():
        return base
    moved = Path(os.path.normpath(path.parent.absolute() / base.beside))
    if not moved.is_file() and facts["holds"] == "trained":
        raise WeightsError(
            str(path), f"it holds what differs from {base.weights}, which is gone", "put that file back, or run again"
        )
    return replace(base, weights=str(moved))


def check_base(base: Base | None, digest: str) -> None:
    """Refuse weights that are not those which a checkpoint is based on.

    Raises:
        WeightsError: ``digest``, the sha256 of the file at hand, is another.
    """
    if base is not None and base.sha256 != digest:
        raise WeightsError(
            base.weights if base.beside is not None else base.source,
            f"not the file that a checkpoint is based on (sha256 {digest[:12]}, expected {base.sha256[:12]})",
            "put the old file back, or run the checkpoint's job again",
        )


def lineage_of(path: Path) -> tuple[dict[str, Any], ...]:
    """The runs that made a checkpoint, from the origin to the latest; empty for a file from elsewhere.

    A link is a run: ``job_id``, ``dataset``, ``backbone``, ``freeze_strategy``, ``wall_clock_s``, and ``source`` and
    ``sha256`` of the weights that it started from.
    """
    record = path.parent / RECORD_FILE
    if path.name != CHECKPOINT_FILE or not record.is_file():
        return ()
    content = _json(record)
    arm, weights = content["arm"], content["weights"]
    link = {
        "job_id": content["job_id"],
        **{key: arm[key] for key in ("dataset", "backbone", "freeze_strategy")},
        "source": weights["source"],
        "sha256": weights["sha256"],
        "wall_clock_s": content["wall_clock_s"],
    }
    return (*weights.get("lineage", ()), link)  # records that are older than the lineage have none


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            str(path), f"cannot be read ({error})", "run the source again, or move the file away"
        ) from None
    assert isinstance(content, dict)
    return content
