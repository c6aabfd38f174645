"""What can be known to be wrong before any job starts, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from tl_experiments.config.datasets import ImageFolder
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.sources import open_dataset, open_source
from tl_experiments.errors import DataError
from tl_experiments.records import RunRecord


def check_data(configs: Iterable[TrainConfig]) -> None:
    """Open each distinct dataset once.

    Raises:
        DataError: One of them cannot be used as it stands.
    """
    distinct = {json.dumps(asdict(config.dataset), sort_keys=True): config for config in configs}
    for config in distinct.values():
        open_dataset(config.dataset, config.seed)


def check_unchanged(done: Iterable[tuple[TrainConfig, RunRecord]]) -> None:
    """Compare folders with what finished runs saw, by names and sizes: an old result must not pass for a new one.

    Raises:
        DataError: Images came, went or changed their size since one of the runs.
    """
    now: dict[str, str] = {}
    for config, record in done:
        if isinstance(config.dataset, ImageFolder):
            key = f"{config.dataset.root} {config.dataset.allow_empty}"
            if key not in now:
                now[key] = open_source(config.dataset).listing
            if now[key] != record.data["listing"]:
                raise DataError(
                    str(config.dataset.root),
                    f"its images changed since job {record.job_id} ran "
                    f"(listing {record.data['listing'][:12]} then, {now[key][:12]} now)",
                    "give another name= for a fresh sweep, or remove the old one's folder",
                )
