"""The dataset of an evaluation: a run's own, changed by overrides, or another. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tl_experiments.config.compose import compose, open_mappings, translate
from tl_experiments.config.datasets import COMMON_OPTIONS, Dataset
from tl_experiments.config.typed import typed
from tl_experiments.data.items import SPLITS, Source
from tl_experiments.data.labels import listed
from tl_experiments.data.location import located
from tl_experiments.data.sources import divide, open_source
from tl_experiments.errors import ConfigError, DataError, UserError
from tl_experiments.records import RunRecord

ALL = "all"


@dataclass(frozen=True)
class _WithDataset:
    dataset: Dataset


def chosen_dataset(config: Mapping[str, Any], overrides: Sequence[str]) -> Dataset:
    """The dataset that a command line means.

    Args:
        config: Of the run, as its record has it, or ``located``.
        overrides: In Hydra's words, of the dataset only. ``dataset=<name>`` starts from that choice's defaults;
            without it the run's own dataset is changed.

    Raises:
        ConfigError: Another group, an unknown key, a value that cannot be.
    """
    for text in overrides:
        name = text.lstrip("+").partition("=")[0]
        if "=" not in text or name.partition(".")[0] != "dataset":
            raise ConfigError(text, "no option of the dataset", "dataset=<name> or dataset.<option>=<value>")
    if any(text.startswith("dataset=") for text in overrides):
        return compose(overrides).dataset
    return typed(_WithDataset, {"dataset": {**config["dataset"], **_values(overrides)}}).dataset


def usual_split(source: Source, dataset: Dataset, record: RunRecord) -> tuple[str, tuple[str, ...]]:
    """The split to evaluate where none is asked for, and what to say about it.

    That is ``test``, but of images that the run has never seen and that nobody has divided: all. To carve a test split
    out of those would only leave images out.

    Args:
        source: Of the dataset.
        dataset: To evaluate.
        record: Of the run.
    """
    comes_split = any(item.split in SPLITS and item.split != "train" for item in source.items)
    if comes_split or dataset.folds is not None or _is_own(dataset, record):
        return "test", ()
    return ALL, ("The dataset is not the run's own and comes without splits: all its images are evaluated.",)


def _is_own(dataset: Dataset, record: RunRecord) -> bool:
    """Whether the run was trained on these images: the same options, or at another place the same contents."""
    try:
        own = chosen_dataset(located(record.config, record.data), [])
        if type(dataset) is type(own) and _which(dataset) == _which(own):
            return True
        as_own = replace(dataset, **{option: getattr(own, option) for option in COMMON_OPTIONS})
        opened = divide(open_source(as_own), as_own, record.seed)
    except UserError:  # the run's dataset could not have been divided so
        return False
    return opened.fingerprint == record.data["fingerprint"]


def _which(dataset: Dataset) -> dict[str, Any]:
    return {option: value for option, value in asdict(dataset).items() if option not in COMMON_OPTIONS}


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """``dataset.key=value`` as key and value; a mapping's entries, ``dataset.tests.name=value``, under its key."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values: dict[str, Any] = {}
    try:
        for override in OverridesParser.create().parse_overrides(open_mappings(overrides)):
            _, key, *inner = override.key_or_group.split(".")
            if inner:
                values.setdefault(key, {})[".".join(inner)] = override.value()
            else:
                values[key] = override.value()
    except (HydraException, ValueError) as error:
        raise translate(error) from None
    return values


def label_map(theirs: Sequence[str], ours: Sequence[str], renamed: Mapping[str, str]) -> list[int]:
    """Label of a dataset -> label of the model, by the classes' names.

    Args:
        theirs: The dataset's classes, in its label order.
        ours: The model's.
        renamed: Class of the dataset -> class of the model, where the names differ.

    Raises:
        DataError: A class that the model does not know.
        ConfigError: ``renamed`` names a class that is not there.
    """
    for source, target in renamed.items():
        if source not in theirs:
            raise ConfigError("--map", f"the dataset has no class {source} ({listed(theirs)})", "name one of these")
        if target not in ours:
            raise ConfigError("--map", f"the model has no class {target} ({listed(ours)})", "name one of these")
    named = [renamed.get(name, name) for name in theirs]
    if unknown := [name for name in named if name not in ours]:
        what = f"{len(unknown)} classes that the model does not know: {listed(unknown)}; it knows {listed(ours)}"
        raise DataError("dataset", what, f"--map {unknown[0]}=<class of the model>, or leave their images out")
    position = {name: label for label, name in enumerate(ours)}
    return [position[name] for name in named]
