"""``run(cfg) -> RunRecord``: the one assembly point of the command line, sweeps, tests and notebooks."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from tl_experiments import interrupt
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.items import Split
from tl_experiments.records import RECORD_FILE, RunRecord, remove_stale_temporaries
from tl_experiments.training.account import make_record, write_start
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import write_checkpoint
from tl_experiments.training.disk import check_space
from tl_experiments.training.environment import choose_accelerator, choose_precision, device_name
from tl_experiments.training.fit import fit
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id, runs_folder
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.outputs import write_predictions
from tl_experiments.training.resume import remove_resume_points
from tl_experiments.training.summary import layout_table, summary_lines

logger = logging.getLogger(__name__)


def layout(cfg: TrainConfig) -> str:
    """The table that ``print_layout=true`` shows; reads the data, trains nothing."""
    return layout_table(build(cfg))


def run(cfg: TrainConfig, folder: Path | str | None = None) -> RunRecord:
    """Train one job and write its folder: metrics, predictions, checkpoint, and last the record.

    Args:
        cfg: From ``compose``.
        folder: Where to write; by default ``<output_dir>/<name or "runs">/<job id>``.

    Raises:
        UserError: What is wrong with config, data or weights, before training; ``DivergedError`` and
            ``TrainingError`` during it.
        Interrupted: A signal that ``interrupt.install`` handles; the same call again goes on from the step in progress.
    """
    started = time.perf_counter()
    identity = job_id(cfg)
    target = Path(folder) if folder is not None else runs_folder(cfg) / (cfg.name or "runs") / identity
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()

    parts = build(cfg)
    for line in summary_lines(cfg, parts, device_name(accelerator), precision):
        logger.info(line)
    (target / RECORD_FILE).unlink(missing_ok=True)  # a record beside other metrics would lie
    remove_stale_temporaries(target)
    check_space(cfg, parts, target)
    write_start(target, cfg, identity, parts.lr)
    history = History(target, parts.data.steps_per_epoch, started)
    with interrupt.postponed():
        trainer, module = fit(cfg, parts, history, accelerator, precision)
        history.restore_best(parts.model)
        trainer.test(module, dataloaders=parts.data.eval_loader("test"), verbose=False)
    assert module.predictions is not None
    assert history.best_predictions is not None
    splits: dict[Split, Predictions] = {"val": history.best_predictions, "test": module.predictions}
    classes = parts.data.spec.classes
    write_predictions(target, splits, {split: parts.data.item_ids(split) for split in splits}, classes)
    write_checkpoint(target, cfg, identity, parts)
    record = make_record(cfg, identity, parts, history, module, accelerator, precision)
    record.write(target)
    remove_resume_points(target)
    if cfg.debug.evaluate_on_train:
        learnt, n = record.metrics["test"]["accuracy"], parts.data.spec.sizes["train"]
        logger.info("overfit   learnt %d of %d images by heart", round(learnt * n), n)
    logger.info(
        "test      accuracy %.4f  macro F1 %.4f  nll %.4f  with the weights of epoch %.4g  %.1f s -> %s",
        *(record.metrics["test"][name] for name in ("accuracy", "macro_f1", "nll")),
        record.best_step / parts.data.steps_per_epoch, record.wall_clock_s, target,
    )  # fmt: skip
    return record
