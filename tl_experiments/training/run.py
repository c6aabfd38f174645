"""``run(cfg) -> RunRecord``: the one assembly point of the command line, sweeps, tests and notebooks."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from tl_experiments import interrupt
from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import UserError
from tl_experiments.records import RECORD_FILE, RunRecord, remove_stale_temporaries
from tl_experiments.training.account import Trained, make_record, training_notes, write_start
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import write_checkpoint
from tl_experiments.training.disk import check_space
from tl_experiments.training.environment import choose_accelerator, choose_precision, device_name
from tl_experiments.training.fit import fit
from tl_experiments.training.groups import ALONE, SharedWork, group_key
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id, runs_folder
from tl_experiments.training.outputs import write_results
from tl_experiments.training.probing import train_probes
from tl_experiments.training.progress import Told, unwatched
from tl_experiments.training.resume import remove_resume_points
from tl_experiments.training.summary import layout_table, summary_lines

logger = logging.getLogger(__name__)


def layout(cfg: TrainConfig) -> str:
    """The table that ``print_layout=true`` shows; reads the data, trains nothing."""
    return layout_table(build(cfg))


def run(
    cfg: TrainConfig, folder: Path | str | None = None, shared: SharedWork = ALONE, progress: Told = unwatched
) -> RunRecord:
    """Train one job and write its folder: metrics, predictions, checkpoint, and last the record.

    Args:
        cfg: From ``compose``.
        folder: Where to write; by default ``<output_dir>/<name or "runs">/<job id>``.
        shared: What to do for others on the way.
        progress: Called with the steps done and their total.

    Raises:
        UserError: What is wrong with config, data or weights, before training; ``DivergedError`` and
            ``TrainingError`` during it.
        Interrupted: A signal that ``interrupt.install`` handles; the same call again goes on from the step in progress.
    """
    identity = job_id(cfg)
    target = Path(folder) if folder is not None else runs_folder(cfg) / (cfg.name or "runs") / identity
    if group_key(cfg) is None:
        return _run_alone(cfg, target, identity, shared, progress)
    ((_, result),) = train_probes([(cfg, target)], shared, frozenset(), lambda _, *steps: progress(*steps))
    if isinstance(result, UserError):
        raise result
    _say(result, target)
    return result


def _run_alone(cfg: TrainConfig, target: Path, identity: str, shared: SharedWork, progress: Told) -> RunRecord:
    """A run that Lightning trains."""
    started = time.perf_counter()
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()

    parts = build(cfg, shared)
    for line in summary_lines(cfg, parts, device_name(accelerator), precision):
        logger.info(line)
    (target / RECORD_FILE).unlink(missing_ok=True)  # a record beside other metrics would lie
    remove_stale_temporaries(target)
    check_space(cfg, parts, target)
    write_start(target, cfg, identity, parts.lr)
    history = History(target, parts.data.steps_per_epoch, started)
    with interrupt.postponed():
        fitted = fit(cfg, parts, history, accelerator, precision, progress)
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
    kept = [note for cached in fitted.cached.values() for note in cached.notes]
    notes = (*training_notes(cfg, module), *dict.fromkeys(kept))
    trained = Trained(module.predictions, module.step, module.accumulation, work, notes)
    record = make_record(cfg, identity, parts, history, trained, accelerator, precision)
    record.write(target)
    remove_resume_points(target)
    _say(record, target)
    fitted.release()
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
