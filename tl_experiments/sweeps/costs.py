"""What things cost on this machine, remembered from command to command."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import StorageError
from tl_experiments.records import write_atomically

_VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Price:
    """Of one way to train one net; None is not known yet.

    Args:
        train_s: Seconds for a training image in a step: on kept activations where the strategy has them.
        encode_s: Seconds to compute an image's activations.
        row_bytes: Bytes of an image's activations.
        image_size: Side of the images that the net takes, in pixels.
    """

    train_s: float | None = None
    encode_s: float | None = None
    row_bytes: int | None = None
    image_size: int | None = None


UNKNOWN = Price()


class CostBook:
    """``costs.json``. It changes no result: a damaged one is begun anew.

    Args:
        path: Of the file.
        device: ``cpu`` or ``gpu``.
        threads: CPU threads of a task.
    """

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self._path, self._where = path, f"{platform.node()} {device} {threads}"
        self._known = _read(path)
        self._new: dict[str, Any] = {}

    def price(self, config: TrainConfig) -> Price:
        """Of a run of ``config``."""
        entry = self._known.get(self.key(config))
        try:
            return UNKNOWN if entry is None else Price(**entry)
        except TypeError:
            return UNKNOWN

    @property
    def begin_s(self) -> float:
        """Seconds of a task beside its images: data and model made ready, results written."""
        found = self._known.get(self._begin)
        return found if isinstance(found, float) else 0.0

    def learn_begin(self, seconds: float) -> None:
        """Enter by how much a task took longer than its images; the least counts."""
        if not 0 < self.begin_s <= seconds:
            self._enter(self._begin, seconds)

    def decode_s(self, source: str) -> float | None:
        """Seconds to decode an image of a source, by its ``source_key``."""
        found = self._known.get(self._decoding(source))
        return found if isinstance(found, float) else None

    def learn(self, config: TrainConfig, price: Price) -> None:
        """Enter what is known of ``price``; the rest stays."""
        known = {key: value for key, value in dataclasses.asdict(price).items() if value is not None}
        self._enter(self.key(config), dataclasses.asdict(replace(self.price(config), **known)))

    def learn_decoding(self, source: str, seconds: float) -> None:
        """Enter the seconds that an image of a source takes."""
        self._enter(self._decoding(source), seconds)

    def write(self) -> None:
        """Add what was learnt to the file, beside what others have learnt meanwhile."""
        if not self._new:
            return
        content = {"version": _VERSION, "prices": {**_read(self._path), **self._new}}
        try:
            write_atomically(self._path, json.dumps(content, indent=1, sort_keys=True) + "\n")
        except (OSError, StorageError) as error:
            why = error.what if isinstance(error, StorageError) else error.strerror
            logger.info("note: %s cannot be written (%s): prices are not remembered", self._path, why)

    def _enter(self, key: str, value: Any) -> None:
        self._known[key] = self._new[key] = value

    def key(self, config: TrainConfig) -> str:
        """All that a price depends on."""
        backbone, trainer = config.backbone, config.trainer
        strategy = {**dataclasses.asdict(config.freeze_strategy), "base_lr": None}
        size = backbone.preprocessing.image_size
        net = [backbone.name, dict(backbone.kwargs), size, config.dataset.channels, config.head.name, strategy]
        how = [trainer.precision, trainer.memory_format, config.feature_cache.name, config.augmentation.name]
        return json.dumps([self._where, *net, *how], sort_keys=True)

    @property
    def _begin(self) -> str:
        return json.dumps([self._where, "begin"])

    def _decoding(self, source: str) -> str:
        return json.dumps([self._where, "decode", source])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["prices"]) if content["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
