"""What can be known to be wrong before any job starts, without torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.broken import refuse_bad
from tl_experiments.data.items import Source, Split
from tl_experiments.data.sources import divide, open_source
from tl_experiments.data.splits import Indices, Splits, few
from tl_experiments.errors import DataError
from tl_experiments.records import RunRecord
from tl_experiments.training.groups import source_key
from tl_experiments.training.storage import store_of


class Datasets:
    """Datasets opened so far: each source is listed once, however many configs take some of its images."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._used: dict[str, Splits] = {}

    @property
    def sources(self) -> Collection[Source]:
        """What was listed so far."""
        return self._sources.values()

    def used(self, config: TrainConfig) -> Mapping[Split, Indices]:
        """Positions in the source of the images that a run of ``config`` uses, by split.

        Raises:
            DataError: The dataset cannot be used as it stands.
        """
        dataset, debug = config.dataset, config.debug
        key = repr((dataset, dataset.labels_seed(config.seed)))
        if key not in self._used:
            source = source_key(dataset)
            if source not in self._sources:
                self._sources[source] = open_source(dataset, store_of(config).digests)
            self._used[key] = divide(self._sources[source], dataset, config.seed).used
        return few(self._used[key], debug.images_per_split, debug.evaluate_on_train).indices


def check_data(configs: Iterable[TrainConfig], folder: Path) -> Datasets:
    """Open each distinct dataset once, and decode each of its images unless that has been done before.

    Args:
        configs: Of the jobs.
        folder: For the list of images that cannot be used, if there are some.

    Raises:
        DataError: One of them cannot be used as it stands.
    """
    datasets = Datasets()
    distinct = {json.dumps(asdict(config.dataset), sort_keys=True): config for config in configs}
    for config in distinct.values():
        datasets.used(config)
    for source in datasets.sources:
        refuse_bad(source, folder)
    return datasets


def check_unchanged(done: Iterable[tuple[TrainConfig, RunRecord]]) -> None:
    """Compare the data with what finished runs saw, by contents: an old result must not pass for a new one.

    Files whose digests are known and that look untouched are not read.

    Raises:
        DataError: Images came, went or changed since one of the runs, or cannot be read.
    """
    sources: dict[str, Source] = {}
    now: dict[str, str] = {}
    for config, record in done:
        dataset = config.dataset
        if dataset.location is None and not dataset.tests:
            continue
        source, key = source_key(dataset), repr(dataset)
        if source not in sources:
            sources[source] = open_source(dataset, store_of(config).digests)
        if key not in now:
            now[key] = divide(sources[source], dataset, config.seed).fingerprint
        then = record.data["fingerprint"]
        if now[key] != then:
            raise DataError(
                dataset.location or f"dataset={dataset.name}",
                f"its images changed since job {record.job_id} ran (fingerprint {then[:12]} then, {now[key][:12]} now)",
                "give another name= for a fresh sweep, or remove the old one's folder",
            )
