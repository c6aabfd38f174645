"""``run(cfg) -> RunRecord``: the one assembly point of the command line, sweeps, tests and notebooks."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import UserError
from tl_experiments.records import RECORD_FILE, RunRecord
from tl_experiments.training.account import Trained, make_record, training_notes, write_start
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import write_checkpoint
from tl_experiments.training.environment import choose_accelerator, choose_precision, device_name
from tl_experiments.training.fit import fit
from tl_experiments.training.groups import ALONE, SharedWork, group_key
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id, runs_folder
from tl_experiments.training.outputs import write_results
from tl_experiments.training.probing import train_probes
from tl_experiments.training.resume import remove_resume_points
from tl_experiments.training.summary import layout_table, summary_lines

logger = logging.getLogger(__name__)


def layout(cfg: TrainConfig) -> str:
    """The table that ``print_layout=true`` shows; reads the data, trains nothing."""
    return layout_table(build(cfg))


def run(cfg: TrainConfig, folder: Path | str | None = None, shared: SharedWork = ALONE) -> RunRecord:
    """Train one job and write its folder: metrics, predictions, checkpoint, and last the record.

    Args:
        cfg: From ``compose``.
        folder: Where to write; by default ``<output_dir>/<name or "runs">/<job id>``.
        shared: What to do for others on the way.

    Raises:
        UserError: What is wrong with config, data or weights, before training; ``DivergedError`` and
            ``TrainingError`` during it.
    """
    identity = job_id(cfg)
    target = Path(folder) if folder is not None else runs_folder(cfg) / (cfg.name or "runs") / identity
    return _run_alone(cfg, target, identity, shared) if group_key(cfg) is None else _run_probe(cfg, target, shared)


def _run_probe(cfg: TrainConfig, folder: Path, shared: SharedWork) -> RunRecord:
    """A head on fixed features: a group of one."""
    ((_, result),) = train_probes([(cfg, folder)], shared, frozenset(), lambda *_: None)
    if isinstance(result, UserError):
        raise result
    _say(result, folder)
    return result


def _run_alone(cfg: TrainConfig, target: Path, identity: str, shared: SharedWork) -> RunRecord:
    started = time.perf_counter()
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()

    parts = build(cfg, shared)
    for line in summary_lines(cfg, parts, device_name(accelerator), precision):
        logger.info(line)
    (target / RECORD_FILE).unlink(missing_ok=True)  # a record beside other metrics would lie
    write_start(target, cfg, identity, parts.lr)
    history = History(target, parts.data.steps_per_epoch, started)
    fitted = fit(cfg, parts, history, accelerator, precision)
    module = fitted.module

    history.restore_best(parts.model)
    fitted.trainer.test(module, dataloaders=module.data.eval_loader("test"), verbose=False)
    assert module.predictions is not None
    write_results(target, parts.data, history, module.predictions)
    write_checkpoint(target, cfg, identity, parts)
    work = {
        "images_decoded": parts.data.images_decoded,
        "images_encoded": sum(cached.data.encoded for cached in fitted.cached.values()),
        "cached_phases": sorted(fitted.cached),
        "together": 1,
    }
    notes = training_notes(cfg, module)
    trained = Trained(module.predictions, module.step, module.accumulation, work, notes)
    record = make_record(cfg, identity, parts, history, trained, accelerator, precision)
    record.write(target)
    remove_resume_points(target)
    _say(record, target)
    return record


def _say(record: RunRecord, folder: Path) -> None:
    if record.config["debug"]["evaluate_on_train"]:
        learnt, n = record.metrics["test"]["accuracy"], record.data["sizes"]["train"]
        logger.info("overfit   learnt %d of %d images by heart", round(learnt * n), n)
    logger.info(
        "test      accuracy %.4f  macro F1 %.4f  nll %.4f  with the weights of epoch %.4g  %.1f s -> %s",
        *(record.metrics["test"][name] for name in ("accuracy", "macro_f1", "nll")),
        record.best_epoch, record.wall_clock_s, folder,
    )  # fmt: skip
