"""The tables behind the numbers: costs, environment, data, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl_experiments.analysis.results import Row
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.analysis.wording import memory, plural, seconds

_HASH = 12  # characters of a sha256 that are shown


def cost_rows(costs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row a command that ran something."""
    return [
        (
            str(number), str(cost["jobs"]),
            "unknown" if cost["predicted_s"] is None else seconds(cost["predicted_s"]), seconds(cost["actual_s"]),
            *(f"{cost[f'{when}_{what}']:,}" for what in ("decoded", "encoded") for when in ("predicted", "actual")),
        )
        for number, cost in enumerate(costs, start=1)
    ]  # fmt: skip


def spent_row(row: Row, name: str, runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """What an arm took."""
    decoded = sum(run.record.work.get("images_decoded", 0) for run in runs)
    encoded = sum(run.record.work.get("images_encoded", 0) for run in runs)
    return (
        name, str(row.runs), seconds(row.wall_clock_s), seconds(row.all_trials_s),
        seconds(row.pretraining_s) if row.pretraining_s else "", memory(row.peak_memory_bytes),
        f"{decoded:,}", f"{encoded:,}",
    )  # fmt: skip


def environments(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Each environment once, with its number of runs; the one with the most first."""
    counted: dict[tuple[tuple[str, str], ...], int] = {}
    for run in runs:
        facts = tuple(_flat(run.record.environment))
        counted[facts] = counted.get(facts, 0) + 1
    return [
        {"title": plural(number, "run"), "facts": facts}
        for facts, number in sorted(counted.items(), key=lambda entry: -entry[1])
    ]


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts in order, those within facts (the packages) after them."""
    own = [(key, str(value)) for key, value in environment.items() if not isinstance(value, Mapping)]
    within = [pair for value in environment.values() if isinstance(value, Mapping) for pair in value.items()]
    return [*own, *((str(key), str(value)) for key, value in within)]


def data_rows(runs: Sequence[FinishedRun]) -> list[tuple[str, ...]]:
    """Each content of a dataset once."""
    rows: dict[tuple[str, ...], None] = {}
    for run in runs:
        data, sizes = run.record.data, run.record.data["sizes"]
        row = (
            run.record.arm["dataset"], str(len(run.record.classes)),
            *(str(sizes.get(split, "")) for split in ("train", "val", "test")), str(data["fingerprint"])[:_HASH],
        )  # fmt: skip
        rows[row] = None
    return list(rows)


def weight_rows(runs: Sequence[FinishedRun]) -> list[tuple[str, ...]]:
    """Each set of weights once."""
    rows: dict[tuple[str, ...], None] = {}
    for run in runs:
        weights = run.record.weights
        matched = f"{weights['matched']} of {weights['total']}" if weights.get("matched") and "total" in weights else ""
        origin = " @ ".join(str(part) for part in (weights.get("repo"), weights.get("commit")) if part)
        sha256 = str(weights.get("sha256") or "")[:_HASH]
        rows[(run.record.arm["backbone"], str(weights.get("source", "")), matched, sha256, origin)] = None
    return list(rows)
