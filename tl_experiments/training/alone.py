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
from tl_experiments.training.environment import choose_accelerator, choose_precision, device_name, peak_memory_bytes
from tl_experiments.training.fit import fit
from tl_experiments.training.groups import Judge, SharedWork, Told, why_alone
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.outputs import write_results
from tl_experiments.training.parallel import prepared
from tl_experiments.training.ranks import Ranks, opened
from tl_experiments.training.sharding import whole
from tl_experiments.training.summary import batch_line, summary_lines

logger = logging.getLogger(__name__)


def run_alone(cfg: TrainConfig, target: Path, shared: SharedWork, progress: Told, judge: Judge) -> RunRecord:
    """Train one job with Lightning and write its folder; see ``run``."""
    accelerator = choose_accelerator(cfg.trainer)
    with opened(cfg.trainer, accelerator) as ranks:
        return _run(cfg, target, shared, progress, judge, accelerator, ranks)


def _run(
    cfg: TrainConfig,
    target: Path,
    shared: SharedWork,
    progress: Told,
    judge: Judge,
    accelerator: str,
    ranks: Ranks,
) -> RunRecord:
    identity = job_id(cfg)
    started = time.perf_counter()
    precision = choose_precision(cfg.trainer, accelerator)
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()

    parts = prepared(cfg.trainer, ranks.in_turn(lambda: build(cfg, shared)), accelerator)
    for line in summary_lines(cfg, parts, device_name(accelerator), precision):
        logger.info(line)
    if trains_head_only(cfg.freeze_strategy):  # of others nobody expects to be trained together
        logger.info("trains alone: %s", why_alone(cfg))

    def begin() -> None:
        (target / RECORD_FILE).unlink(missing_ok=True)  # a record beside other metrics would lie
        remove_stale_temporaries(target)
        check_space(cfg, parts, target)
        write_start(target, cfg, identity, parts.lr)

    ranks.done_by_first(begin)

    def agreed(validations: int, accuracy: float) -> str | None:
        return ranks.from_first(judge(validations, accuracy) if ranks.first else None)

    history = History(target, parts.data.steps_per_epoch, started, judge=agreed, writes=ranks.first)
    with interrupt.postponed():
        try:
            fitted = fit(cfg, parts, history, accelerator, precision, progress, ranks)
        except PrunedError:
            if ranks.first:
                remove_resume_points(target)
            raise
        module = fitted.module
        history.restore_best(parts.model)
        tests: dict[Split, Predictions] = {}
        try:
            for split in parts.data.tests:
                fitted.trainer.test(module, dataloaders=module.fetching(module.data.eval_loader(split)), verbose=False)
                assert module.predictions is not None
                tests[split] = module.predictions
        except Interrupted as error:
            if error.where is None:  # while features of the test images were made
                module.end(error.signum)
            raise
    encoded = sum(cached.data.encoded for cached in fitted.cached.values())
    work = {
        "images_decoded": sum(ranks.gather(parts.data.images_decoded)),
        "images_encoded": sum(ranks.gather(encoded)),
        "cached_phases": sorted(fitted.cached),
        "together": 1,
    }
    kept = dict.fromkeys(note for cached in fitted.cached.values() for note in cached.notes)
    batch = batch_line(cfg)
    notes = (*training_notes(cfg, module), *kept, *([f"Batch: {batch}."] if batch else []))
    (memory,) = ranks.largest(peak_memory_bytes(accelerator))
    state = whole(parts.model.state_dict(), ranks.first)

    def end() -> RunRecord:
        metrics = write_results(target, parts.data, history, tests)
        write_checkpoint(target, cfg, identity, parts, state)
        trained = Trained(metrics, module.step, module.accumulation, work, notes, memory)
        record = make_record(cfg, identity, parts, history, trained, accelerator, precision)
        record.write(target)
        remove_resume_points(target)
        return record

    record = ranks.done_by_first(end)
    fitted.release()
    return record
