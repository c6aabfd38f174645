"""What a folder holds that is to be used as a model, checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_experiments.backbones.locate import CHECKPOINT_FILE, base_of, check_chain, checkpoint_facts, file_sha256
from tl_experiments.errors import WeightsError
from tl_experiments.records import RECORD_FILE, RunRecord

EXPORT_FOLDER = "export"
EXPORT_FILE = "model.json"


def is_export(folder: Path) -> bool:
    """Whether ``tl export`` wrote the folder."""
    return (folder / EXPORT_FILE).is_file()


def is_run(folder: Path) -> bool:
    """Whether the folder is a finished run's."""
    return (folder / RECORD_FILE).is_file()


def check_run(folder: Path, weights: Path | None = None) -> tuple[RunRecord, Mapping[str, Any]]:
    """The record of a run and what stands beside its checkpoint, once all files of its model are known to be there.

    Args:
        folder: Of the run.
        weights: The file that the run started from, where it is elsewhere now.

    Raises:
        UserError: The run has no readable record; it kept no weights; a file is damaged, gone or another. A file of
            the hub is not looked for.
    """
    record = RunRecord.read(folder)
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        none = record.config["trainer"]["checkpoint"] == "none"
        what = "the run kept no weights (trainer.checkpoint=none)" if none else f"no {CHECKPOINT_FILE}"
        raise WeightsError(str(folder), what, "run its job again with trainer.checkpoint=trained and another name=")
    if weights is not None and not weights.is_file():
        raise WeightsError("--weights", f"no file {weights}", "give the file that the run started from")
    facts = checkpoint_facts(path)
    if facts is None:
        side = path.with_suffix(".json").name
        raise WeightsError(str(path), f"no {side} beside it: no classes, no preprocessing", "run its job again")
    _refuse_strangers(path, facts, weights)
    try:
        check_chain(path, weights)
    except WeightsError as error:
        raise with_weights_option(error, facts) from None
    return record, facts


def with_weights_option(error: WeightsError, facts: Mapping[str, Any]) -> WeightsError:
    """The error for a base that cannot be had, with the option that names another place for it."""
    base = facts["base"]
    if facts["holds"] != "trained" or base is None:
        return error
    given = f"--weights FILE, whose sha256 is {base['sha256'][:12]}..."
    if base["beside"] is None:
        return WeightsError(base["source"], error.what, f"load it once with network, or give it: {given}")
    return WeightsError(error.thing, error.what, f"{error.fix}, or give it: {given}")


def _refuse_strangers(path: Path, facts: Mapping[str, Any], weights: Path | None) -> None:
    """A file that is no base of the checkpoint would be passed over without a word."""
    if weights is None:
        return
    digest, known = file_sha256(weights), _bases(path, facts)
    if digest not in known:
        expected = " or ".join(f"{one[:12]}..." for one in known) or "none: the checkpoint holds everything"
        raise WeightsError("--weights", f"{weights} has sha256 {digest[:12]}..., expected {expected}", "give that file")


def _bases(path: Path, facts: Mapping[str, Any] | None) -> list[str]:
    """sha256 of the files that a checkpoint needs, as far as they are there to say which they need in turn."""
    known: list[str] = []
    while facts is not None and facts["holds"] == "trained" and facts["base"] is not None:
        known.append(facts["base"]["sha256"])
        try:
            base = base_of(path, facts)
        except WeightsError:  # gone
            break
        assert base is not None
        path = Path(base.weights)
        facts = checkpoint_facts(path)
    return known
