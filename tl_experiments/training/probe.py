"""A run whose head stands on fixed features, among others on the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.items import Split
from tl_experiments.probes.metrics import metrics_of_each
from tl_experiments.training.build import Parts
from tl_experiments.training.history import History
from tl_experiments.training.metrics import Predictions

Progress = Callable[[int, int, int], None]  # position of the run, steps done, of how many


@dataclass(frozen=True)
class Probe:
    """One run of a group.

    Args:
        position: In the group.
        identity: The run's job id.
        cfg: Of the run.
        parts: What it works with; the backbone is everybody's.
        history: Its validations, and its folder.
        images: Equal for runs that use the same images in the same splits.
    """

    position: int
    identity: str
    cfg: TrainConfig
    parts: Parts
    history: History
    images: str


@dataclass(frozen=True)
class Outcome:
    """What training leaves beside the history.

    Args:
        tests: Outputs on test and further test sets, with the weights that val chose.
        last_step: Optimizer steps done.
        notes: What was handled on the way, in whole sentences.
    """

    tests: Mapping[Split, Predictions]
    last_step: int
    notes: tuple[str, ...] = ()


def rows_of_metrics(logits: Tensor, label: Tensor) -> list[dict[str, float]]:
    """Of each head, from logits ``(K, n, C)`` and labels ``(n,)``."""
    columns = {name: values.tolist() for name, values in metrics_of_each(logits, label).items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
