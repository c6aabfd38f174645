"""Where a run's dataset was, so that it is found again from another working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tl_experiments.config.datasets import Dataset
from tl_experiments.user_paths import expanded

_PLACES = ("root", "path", "repo")  # options of the datasets; a repo may be a folder
_TESTS = "tests"


def location(dataset: Dataset) -> dict[str, Any]:
    """Option -> absolute path, of those options that name something on this machine; further test sets by name."""
    given = {option: getattr(dataset, option, None) for option in _PLACES}
    found: dict[str, Any] = _absolute(given)
    if tests := _absolute(dataset.tests):
        found[_TESTS] = tests
    return found


def located(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config whose dataset is given by absolute paths, where what was given is not one or leads nowhere.

    A path that was given stays if the recorded one leads nowhere either, or is not recorded.

    Args:
        config: ``RunRecord.config``.
        data: ``RunRecord.data``; records of older versions have no ``location``.
    """
    known = data.get("location")
    if not known:
        return {**config}
    dataset = {**config["dataset"]}
    dataset |= _found(dataset, {option: path for option, path in known.items() if option != _TESTS})
    if _TESTS in known:
        dataset[_TESTS] = {**dataset[_TESTS], **_found(dataset[_TESTS], known[_TESTS])}
    return {**config, "dataset": dataset}


def _absolute(paths: Mapping[str, str | None]) -> dict[str, str]:
    there = {name: expanded(path) for name, path in paths.items() if path is not None}
    return {name: os.path.abspath(path) for name, path in there.items() if os.path.exists(path)}


def _found(given: Mapping[str, str], recorded: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, path in recorded.items():
        as_given = expanded(given[name])
        holds = os.path.isabs(as_given) and os.path.exists(as_given)
        if not holds and os.path.exists(path):
            found[name] = path
    return found
