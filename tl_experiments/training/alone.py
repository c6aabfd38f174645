"""A run that Lightning trains."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from tl_experiments import interrupt
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.items import Split
from tl_experiments.errors import PrunedError
from tl_experiments.interrupt import Interrupted
from tl_experiments.records import RECORD_FILE, RunRecord, remove_resume_points, remove_stale_temporaries
from tl_experiments.strategies.plans import trains_head_only
from tl_experiments.training.account import Trained, make_record, training_notes, write_start
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import write_checkpoint
from tl_experiments.training.disk import check_space
from tl_experiments.training.environment import choose_accelerator, choose_precision, device_name
from tl_experiments.training.fit import fit
from tl_experiments.training.groups import Judge, SharedWork, Told, why_alone
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.outputs import write_results
from tl_experiments.training.summary import summary_lines

logger = logging.getLogger(__name__)


def run_alone(cfg: TrainConfig, target: Path, shared: SharedWork, progress: Told, judge: Judge) -> RunRecord:
    """Train one job with Lightning and write its folder; see ``run``."""
    identity = job_id(cfg)
    started = time.perf_counter()
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()

    parts = build(cfg, shared)
    for line in summary_lines(cfg, parts, device_name(accelerator), precision):
        logger.info(line)
    if trains_head_only(cfg.freeze_strategy):  # of others nobody expects to be trained together
        logger.info("trains alone: %s", why_alone(cfg))
    (target / RECORD_FILE).unlink(missing_ok=True)  # a record beside other metrics would lie
    remove_stale_temporaries(target)
    check_space(cfg, parts, target)
    write_start(target, cfg, identity, parts.lr)
    history = History(target, parts.data.steps_per_epoch, started, judge=judge)
    with interrupt.postponed():
        try:
            fitted = fit(cfg, parts, history, accelerator, precision, progress)
        except PrunedError:
            remove_resume_points(target)
            raise
        module = fitted.module
        history.restore_best(parts.model)
        tests: dict[Split, Predictions] = {}
        try:
            for split in parts.data.tests:
                fitted.trainer.test(module, dataloaders=module.data.eval_loader(split), verbose=False)
                assert module.predictions is not None
                tests[split] = module.predictions
        except Interrupted as error:
            if error.where is None:  # while features of the test images were made
                module.end(error.signum)
            raise
    metrics = write_results(target, parts.data, history, tests)
    write_checkpoint(target, cfg, identity, parts)
    work = {
        "images_decoded": parts.data.images_decoded,
        "images_encoded": sum(cached.data.encoded for cached in fitted.cached.values()),
        "cached_phases": sorted(fitted.cached),
        "together": 1,
    }
    kept = dict.fromkeys(note for cached in fitted.cached.values() for note in cached.notes)
    notes = (*training_notes(cfg, module), *kept)
    trained = Trained(metrics, module.step, module.accumulation, work, notes)
    record = make_record(cfg, identity, parts, history, trained, accelerator, precision)
    record.write(target)
    remove_resume_points(target)
    fitted.release()
    return record
