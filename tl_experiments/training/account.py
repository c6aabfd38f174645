"""A finished run, put into its record."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.location import location
from tl_experiments.records import START_FILE, RunRecord, write_atomically
from tl_experiments.safe_text import redacted
from tl_experiments.training.build import Parts
from tl_experiments.training.environment import environment, peak_memory_bytes
from tl_experiments.training.history import History
from tl_experiments.training.identity import arm
from tl_experiments.training.summary import trained_parameters

if TYPE_CHECKING:
    from tl_experiments.training.module import TransferModule


def write_start(folder: Path, cfg: TrainConfig, identity: str, lr: float) -> Path:
    """Write ``start.json``: what is known of a run before it trains, under the names of the record."""
    known = {"job_id": identity, "config": dataclasses.asdict(cfg), "arm": arm(cfg), "seed": cfg.seed}
    text = json.dumps(redacted({**known, "learning_rate": lr}), indent=2, sort_keys=True, ensure_ascii=False)
    return write_atomically(folder / START_FILE, text + "\n", sync_folder=False)


@dataclass(frozen=True)
class Trained:
    """What came out of training.

    Args:
        metrics: Split -> metrics, with the weights that val chose.
        last_step: Optimizer steps done.
        accumulation: Parts in which batches were computed in the end.
        work: As in ``RunRecord``.
        notes: What was handled on the way, in whole sentences.
        peak_memory_bytes: The largest of all processes; None is this one's.
    """

    metrics: Mapping[str, Mapping[str, float]]
    last_step: int
    accumulation: int
    work: Mapping[str, Any]
    notes: tuple[str, ...]
    peak_memory_bytes: int | None = None


def make_record(
    cfg: TrainConfig,
    identity: str,
    parts: Parts,
    history: History,
    trained: Trained,
    accelerator: str,
    precision: str,
    wall_clock_s: float | None = None,
) -> RunRecord:
    """The record of a run that has just been tested.

    Args:
        cfg: Of the run.
        identity: Its job id.
        parts: What it worked with.
        history: Its validations.
        trained: What came out.
        accelerator: ``gpu`` or ``cpu``.
        precision: Lightning's name of it.
        wall_clock_s: Its share of the seconds of a computation of several runs; None is all since ``history.started``.
    """
    spec, layout = parts.data.spec, parts.model.layout
    sizes = {name: size for phase in parts.phases for name, size in trained_parameters(parts, phase).items()}
    return RunRecord(
        job_id=identity,
        config=dataclasses.asdict(cfg),
        arm=arm(cfg),
        seed=cfg.seed,
        classes=spec.classes,
        data={
            "fingerprint": spec.fingerprint,
            "sizes": dict(spec.sizes),
            "labels_spent": spec.sizes["train"] + spec.sizes["val"],
            "notes": list(spec.notes),
            "skipped": [{"item": item, "reason": reason} for item, reason in spec.skipped.items()],
            "location": location(cfg.dataset),
        },
        metrics={split: dict(values) for split, values in trained.metrics.items()},
        best_step=history.best_step,
        last_step=trained.last_step,
        accumulation=trained.accumulation,
        phases=tuple(
            {
                "first_step": phase.first_step,
                "steps": phase.steps,
                "trained_parameters": sum(trained_parameters(parts, phase).values()),
                "learning_rates": phase.learning_rates(parts.lr),
                "norm_stats": phase.phase.norm_stats,
            }
            for phase in parts.phases
        ),
        trained_parameters=sum(sizes.values()),
        total_parameters=sum(block.size for block in layout.all_blocks),
        learning_rate=parts.lr,
        weights=json.loads(json.dumps(dataclasses.asdict(parts.weights))),  # lists, as they read back
        still_rising=not cfg.head.is_solved and history.still_rising(),
        wall_clock_s=time.perf_counter() - history.started if wall_clock_s is None else wall_clock_s,
        pretraining_s=parts.weights.pretraining_s,
        peak_memory_bytes=trained.peak_memory_bytes or peak_memory_bytes(accelerator),
        environment=environment(accelerator, precision, cfg.trainer.world_size),
        notes=(*parts.notes, *trained.notes),
        work=trained.work,
    )


def training_notes(cfg: TrainConfig, module: TransferModule) -> tuple[str, ...]:
    """What was handled on the way, in whole sentences."""
    notes = []
    if module.accumulation > cfg.trainer.accumulation:
        notes.append(
            f"Memory ran out: batches of {cfg.trainer.batch_size} were computed in {module.accumulation} parts."
        )
    if module.step < module.phase.end_step:
        notes.append(
            f"Stopped early after step {module.step} of {module.phase.end_step}: "
            f"no better val for {cfg.trainer.early_stopping_patience} validations."
        )
    return tuple(notes)
