"""What can be known to be wrong before any job starts, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.sources import open_dataset


def check_data(configs: Iterable[TrainConfig]) -> None:
    """Open each distinct dataset once.

    Raises:
        DataError: One of them cannot be used as it stands.
    """
    distinct = {json.dumps(asdict(config.dataset), sort_keys=True): config for config in configs}
    for config in distinct.values():
        open_dataset(config.dataset, config.seed)
