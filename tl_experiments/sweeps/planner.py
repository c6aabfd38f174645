"""What a sweep shares and what it costs: before its jobs run, and after."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.config.datasets import IN_MEMORY
from tl_experiments.config.schema import TrainConfig
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.costs import CostBook, Price
from tl_experiments.sweeps.tasks import Task, encoded_views, is_fused, trains_live
from tl_experiments.training.groups import source_key
from tl_experiments.training.identity import arm
from tl_experiments.training.preflight import Datasets

COSTS_FILE = "costs.json"
_ROWS_SHOWN = 12
_FORWARD_OF_STEP = 3  # a backward pass costs two forward passes


@dataclass(frozen=True)
class Cost:
    """Of one task, or of several; None is not known.

    Args:
        decoded: Images decoded from files.
        encoded: Forward passes of images through a frozen prefix.
        visits: Images that training steps see, over all jobs; one that is only evaluated is a third of that.
        seconds: On one slot.
        cache_bytes: Written to the cache.
    """

    decoded: int = 0
    encoded: int = 0
    visits: float = 0
    seconds: float | None = 0.0
    cache_bytes: int | None = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.decoded + other.decoded,
            self.encoded + other.encoded,
            self.visits + other.visits,
            None if self.seconds is None or other.seconds is None else self.seconds + other.seconds,
            None if self.cache_bytes is None or other.cache_bytes is None else self.cache_bytes + other.cache_bytes,
        )


@dataclass(frozen=True)
class Plan:
    """Tasks in their order, each with its cost, were nothing in the cache yet; ``at_once`` of them run at a time.

    Each takes ``begin_s`` beside its cost.
    """

    tasks: tuple[Task, ...]
    costs: tuple[Cost, ...]
    at_once: int
    begin_s: float = 0.0

    @property
    def total(self) -> Cost:
        """Of all tasks; its seconds are those until the last one ends."""
        total = sum(self.costs, Cost())
        return dataclasses.replace(total, seconds=_makespan(self.costs, self.begin_s, self.at_once))


def costs_file(config: TrainConfig) -> Path:
    """Where prices are remembered."""
    return Path(os.path.expanduser(config.output_dir), ".cache", COSTS_FILE)


def make_plan(tasks: Sequence[Task], datasets: Datasets, book: CostBook, at_once: int) -> Plan:
    """Count what each task will do that none before it has done, and price it."""
    counter = _Counter(datasets, book)
    return Plan(tuple(tasks), tuple(counter.cost(task) for task in tasks), at_once, book.begin_s)


def unpriced(tasks: Sequence[Task], book: CostBook) -> list[TrainConfig]:
    """A config for each price that the book does not have."""
    missing: dict[str, TrainConfig] = {}
    for config in (job.config for task in tasks for job in task.todo):
        price = book.price(config)
        if None in (price.train_s, price.encode_s, price.row_bytes, price.image_size):
            missing.setdefault(book.key(config), config)
    return list(missing.values())


def undecoded(tasks: Sequence[Task], book: CostBook) -> list[TrainConfig]:
    """A config for each folder of images of which the book does not know what decoding costs."""
    configs = {source_key(job.config.dataset): job.config for task in tasks for job in task.todo}
    return [
        config
        for source, config in configs.items()
        if config.dataset.name not in IN_MEMORY and book.decode_s(source) is None
    ]


def learn(book: CostBook, task: Task, cost: Cost, records: Sequence[RunRecord], seconds: float) -> None:
    """Enter what a finished task says of its prices.

    Its seconds are those of beginning, of decoding, of encoding and of training; what is known of the others is taken
    off. Heads on fixed features train in next to no time, so that what is left of theirs is encoding.
    """
    config = task.jobs[0].config
    price = book.price(config)
    if cost.seconds is not None and price.image_size is not None:  # it was measured, not learnt like this
        book.learn_begin(max(0.0, seconds - cost.seconds))
    decoded, encoded = _work(records)
    rest = max(0.0, seconds - book.begin_s - decoded * (book.decode_s(source_key(config.dataset)) or 0.0))
    if encoded and is_fused(config):
        book.learn(config, Price(encode_s=rest / encoded))
    elif encoded:
        encode_s = rest / (encoded + cost.visits) if price.encode_s is None else price.encode_s
        book.learn(
            config, Price(train_s=max(0.0, rest - encoded * encode_s) / max(1.0, cost.visits), encode_s=encode_s)
        )
    elif cost.visits:
        book.learn(config, Price(train_s=rest / cost.visits))


class _Counter:
    """Walks through the tasks in order and remembers which images are decoded and encoded by then."""

    def __init__(self, datasets: Datasets, book: CostBook) -> None:
        self._datasets, self._book = datasets, book
        self._decoded: dict[str, set[int]] = defaultdict(set)
        self._encoded: dict[str, set[int]] = defaultdict(set)

    def cost(self, task: Task) -> Cost:
        source = source_key(task.jobs[0].config.dataset)
        used = [
            {split: set(indices.tolist()) for split, indices in self._datasets.used(job.config).items()}
            for job in task.jobs
        ]
        images = {index for splits in used for indices in splits.values() for index in indices}
        decoded = images - self._decoded[source]
        self._decoded[source] |= images
        cost = Cost(
            decoded=0 if task.jobs[0].config.dataset.name in IN_MEMORY else len(decoded),
            cache_bytes=self._decoded_bytes(task, len(decoded)),
        )
        decode_s = self._book.decode_s(source)
        cost += Cost(seconds=0.0 if not cost.decoded else None if decode_s is None else cost.decoded * decode_s)
        for job, splits in zip(task.jobs, used, strict=True):
            cost += self._training(job.config, {split: len(indices) for split, indices in splits.items()})
            cost += self._encoding(job.config, source, splits)
        return cost

    def _decoded_bytes(self, task: Task, images: int) -> int | None:
        if not (task.shared.keep_decoded and images):
            return 0
        config = task.jobs[0].config
        sizes = [
            backbone.preprocessing.image_size
            or self._book.price(dataclasses.replace(config, backbone=backbone)).image_size
            for backbone in task.shared.backbones
        ]
        known = {size for size in sizes if size is not None}
        return None if None in sizes else sum(images * config.dataset.channels * size**2 for size in known)

    def _training(self, config: TrainConfig, sizes: Mapping[str, int]) -> Cost:
        if config.head.is_solved:
            return Cost()
        once = sum(sizes.values()) - sizes["train"] - sizes["val"]  # the test sets
        looks = config.trainer.max_epochs * sizes["val"] + once
        visits = config.trainer.max_epochs * sizes["train"] + looks / _FORWARD_OF_STEP
        price = self._book.price(config).train_s
        return Cost(visits=visits, seconds=None if price is None else visits * price)

    def _encoding(self, config: TrainConfig, source: str, splits: Mapping[str, set[int]]) -> Cost:
        train, new = splits["train"], 0
        others = set[int]().union(*(images for split, images in splits.items() if split != "train"))
        for prefix, views in encoded_views(config).items():
            for view, images in (("", others), *((view, train) for view in sorted(views))):
                known = self._encoded[source + prefix + view]
                new += len(images - known)
                known |= images
        if not new:
            return Cost()
        price = self._book.price(config)
        seconds = None if price.encode_s is None else new * price.encode_s
        size = None if price.row_bytes is None else new * price.row_bytes
        return Cost(encoded=new, seconds=seconds, cache_bytes=size)


def table(plan: Plan) -> str:
    """The plan as lines: a caption, then a row for tasks of the same kind."""
    rows: dict[str, list[tuple[Task, Cost]]] = defaultdict(list)
    for task, cost in zip(plan.tasks, plan.costs, strict=True):
        rows[_label(task)].append((task, cost))
    lines: list[tuple[str, ...]] = [("what is shared", "tasks", "jobs", "decoded", "encoded", "seconds", "cache")]
    for label, members in list(rows.items())[:_ROWS_SHOWN]:
        lines.append(_line(label, [task for task, _ in members], sum((cost for _, cost in members), Cost())))
    if len(rows) > _ROWS_SHOWN:
        rest = [member for members in list(rows.values())[_ROWS_SHOWN:] for member in members]
        label = f"{len(rows) - _ROWS_SHOWN} more kinds"
        lines.append(_line(label, [task for task, _ in rest], sum((cost for _, cost in rest), Cost())))
    lines.append(_line(f"all, {plan.at_once} at once" if plan.at_once > 1 else "all", plan.tasks, plan.total))
    return f"at most, were nothing kept yet:\n{aligned(lines)}"


def account(plan: Plan, records: Iterable[RunRecord], seconds: float) -> dict[str, float | int | None]:
    """Predicted against actual, as the ledger keeps it; predicted seconds are null where a price was not known."""
    decoded, encoded = _work(records)
    total = plan.total
    return {
        "jobs": sum(len(task.todo) for task in plan.tasks),
        "predicted_s": total.seconds,
        "actual_s": seconds,
        "predicted_decoded": total.decoded,
        "actual_decoded": decoded,
        "predicted_encoded": total.encoded,
        "actual_encoded": encoded,
    }


def comparison(spent: Mapping[str, float | int | None]) -> str:
    """What ``account`` gives, as lines."""
    rows = [
        (
            which,
            f"{spent[f'{which}_decoded']:,}",
            f"{spent[f'{which}_encoded']:,}",
            _seconds(spent[f"{which}_s"]),
        )
        for which in ("predicted", "actual")
    ]
    return aligned([("", "decoded", "encoded", "seconds"), *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _work(records: Iterable[RunRecord]) -> tuple[int, int]:
    """Images decoded from files and images encoded in these runs."""
    decoded = encoded = 0
    for record in records:
        if record.config["dataset"]["name"] not in IN_MEMORY:
            decoded += record.work.get("images_decoded", 0)
        encoded += record.work.get("images_encoded", 0)
    return decoded, encoded


def _line(label: str, tasks: Sequence[Task], cost: Cost) -> tuple[str, ...]:
    counts = (f"{len(tasks)}", f"{sum(len(task.todo) for task in tasks)}", f"{cost.decoded:,}", f"{cost.encoded:,}")
    return (label, *counts, _seconds(cost.seconds), _bytes(cost.cache_bytes))


def _label(task: Task) -> str:
    config = task.jobs[0].config
    names = arm(config)
    what = "heads on the features" if is_fused(config) else names["freeze_strategy"]
    return f"{what} of {names['backbone']}, {names['dataset']}{'' if not trains_live(config) else ', live'}"


def _makespan(costs: Sequence[Cost], begin_s: float, at_once: int) -> float | None:
    """When the last of the tasks ends, each begun on the first slot that is free."""
    slots = [0.0] * max(1, at_once)
    for cost in costs:
        if cost.seconds is None:
            return None
        slots[slots.index(min(slots))] += begin_s + cost.seconds
    return max(slots)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "?"
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
