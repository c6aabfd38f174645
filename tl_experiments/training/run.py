"""``run(cfg) -> RunRecord``: the one assembly point of the command line, sweeps, tests and notebooks."""

from __future__ import annotations

import logging
from pathlib import Path

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord
from tl_experiments.training.build import build
from tl_experiments.training.groups import ALONE, Judge, SharedWork, Told, group_key, unjudged, unwatched
from tl_experiments.training.identity import job_id, runs_folder
from tl_experiments.training.probing import train_probes
from tl_experiments.training.ranks import ranks_of
from tl_experiments.training.summary import layout_table

logger = logging.getLogger(__name__)


def layout(cfg: TrainConfig) -> str:
    """The table that ``print_layout=true`` shows; reads the data, trains nothing."""
    return layout_table(build(cfg))


def run(
    cfg: TrainConfig,
    folder: Path | str | None = None,
    shared: SharedWork = ALONE,
    progress: Told = unwatched,
    judge: Judge = unjudged,
) -> RunRecord:
    """Train one job and write its folder: metrics, predictions, checkpoint, and last the record.

    Args:
        cfg: From ``compose``.
        folder: Where to write; by default ``<output_dir>/<name or "runs">/<job id>``.
        shared: What to do for others on the way.
        progress: Called with the steps done and their total.
        judge: Asked after each validation whether the run is to go on; not of a head on fixed features.

    Raises:
        UserError: What is wrong with config, data or weights, before training; ``DivergedError``,
            ``PrunedError`` and ``TrainingError`` during it.
        Interrupted: A signal that ``interrupt.install`` handles; the same call again goes on from the step in progress.
    """
    target = Path(folder) if folder is not None else runs_folder(cfg) / (cfg.name or "runs") / job_id(cfg)
    if group_key(cfg) is None:
        from tl_experiments.training.alone import run_alone  # Lightning, whose import takes a second

        record = run_alone(cfg, target, shared, progress, judge)
    else:
        ((_, result),) = train_probes([(cfg, target)], shared, frozenset(), lambda _, *steps: progress(*steps))
        if isinstance(result, UserError):
            raise result
        record = result
    if ranks_of(cfg.trainer).first:
        _say(record, target)
    return record


def _say(record: RunRecord, folder: Path) -> None:
    if record.config["debug"]["evaluate_on_train"]:
        learnt, n = record.metrics["test"]["accuracy"], record.data["sizes"]["train"]
        logger.info("overfit   learnt %d of %d images by heart", round(learnt * n), n)
    epoch = "" if record.learning_rate == 0 else f"  with the weights of epoch {record.best_epoch:.4g}"
    logger.info(
        "test      accuracy %.4f  macro F1 %.4f  nll %.4f%s  %.1f s -> %s",
        *(record.metrics["test"][name] for name in ("accuracy", "macro_f1", "nll")),
        epoch, record.wall_clock_s, folder,
    )  # fmt: skip
    for split, metrics in record.metrics.items():
        if split.startswith("test/"):
            values = (metrics[name] for name in ("accuracy", "macro_f1", "nll"))
            logger.info("%-9s accuracy %.4f  macro F1 %.4f  nll %.4f", split, *values)
