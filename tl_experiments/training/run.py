"""``run(cfg) -> RunRecord``: the one assembly point of the command line, sweeps, tests and notebooks."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytorch_lightning as pl
import torch

from tl_experiments.config.schema import TrainConfig
from tl_experiments.records import RunRecord
from tl_experiments.seeds import derive
from tl_experiments.training.build import Parts, build
from tl_experiments.training.environment import (
    choose_accelerator,
    choose_precision,
    device_name,
    environment,
    peak_memory_bytes,
)
from tl_experiments.training.history import History
from tl_experiments.training.identity import arm, job_id
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.module import TransferModule
from tl_experiments.training.outputs import write_checkpoint, write_predictions
from tl_experiments.training.summary import layout_table, summary_lines, trained_parameters

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
    """
    started = time.perf_counter()
    identity = job_id(cfg)
    target = Path(folder) if folder is not None else Path(cfg.output_dir) / (cfg.name or "runs") / identity
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()
    _quieten_lightning()

    parts = build(cfg)
    for line in summary_lines(cfg, parts, device_name(accelerator), precision):
        logger.info(line)
    history = History(target, parts.data.steps_per_epoch, started)
    trainer, module = _fit(cfg, parts, history, accelerator, precision)

    history.restore_best(parts.model)
    trainer.test(module, dataloaders=parts.data.eval_loader("test"), verbose=False)
    assert module.predictions is not None
    assert history.best_predictions is not None
    splits = {"val": history.best_predictions, "test": module.predictions}
    classes = parts.data.spec.classes
    write_predictions(target, splits, {split: parts.data.item_ids(split) for split in splits}, classes)
    facts = {"backbone": cfg.backbone.name, "classes": classes, "job_id": identity}
    write_checkpoint(target, parts.model, {**facts, "input": dataclasses.asdict(parts.model.backbone.input_spec)})
    record = _record(cfg, identity, parts, history, module.predictions, accelerator, precision, started)
    record.write(target)
    logger.info(
        "test      accuracy %.4f  macro F1 %.4f  nll %.4f  in %.1f s -> %s",
        *(record.metrics["test"][name] for name in ("accuracy", "macro_f1", "nll")), record.wall_clock_s, target,
    )  # fmt: skip
    return record


def _fit(
    cfg: TrainConfig, parts: Parts, history: History, accelerator: str, precision: str
) -> tuple[pl.Trainer, TransferModule]:
    """One fit a phase. The start of the last phase is validated too: it may be the best there is."""
    for phase in parts.phases:
        torch.manual_seed(derive(cfg.seed, "training", phase.number))  # dropout and the like
        module = TransferModule(
            parts.model, parts.objective, parts.data, phase, cfg.optimizer, cfg.scheduler, parts.lr, history
        )
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=len(phase.chunks),
            reload_dataloaders_every_n_epochs=1,  # a chunk is one of Lightning's epochs
            gradient_clip_val=cfg.trainer.gradient_clip_norm,
            num_sanity_val_steps=0,
            inference_mode=False,  # images decoded during a validation are trained on later
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=_progress(),
            default_root_dir=history.folder,
        )
        if phase.last:
            trainer.validate(module, verbose=False)
        trainer.fit(module)
    return trainer, module


def _progress() -> list[pl.Callback]:
    """A bar on a terminal; elsewhere the lines of ``History`` say enough."""
    if not sys.stderr.isatty():
        return []
    from pytorch_lightning.callbacks import RichProgressBar

    return [RichProgressBar(leave=False)]


def _record(
    cfg: TrainConfig,
    identity: str,
    parts: Parts,
    history: History,
    test: Predictions,
    accelerator: str,
    precision: str,
    started: float,
) -> RunRecord:
    spec, layout = parts.data.spec, parts.model.layout
    trained = {name: size for phase in parts.phases for name, size in trained_parameters(parts, phase).items()}
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
        },
        metrics={"val": history.best, "test": test.metrics()},
        best_step=history.best_step,
        phases=tuple(
            {
                "first_step": phase.first_step,
                "steps": phase.steps,
                "trained_parameters": sum(trained_parameters(parts, phase).values()),
                "learning_rates": _rates(phase.phase.lr_multiplier.values(), parts.lr),
                "norm_stats": phase.phase.norm_stats,
            }
            for phase in parts.phases
        ),
        trained_parameters=sum(trained.values()),
        total_parameters=sum(block.size for block in (*layout.blocks, layout.head)),
        learning_rate=parts.lr,
        weights=dataclasses.asdict(parts.weights),
        still_rising=history.still_rising(),
        wall_clock_s=time.perf_counter() - started,
        pretraining_s=parts.weights.pretraining_s,
        peak_memory_bytes=peak_memory_bytes(accelerator),
        environment=environment(accelerator, precision),
    )


def _rates(multipliers: Iterable[float], lr: float) -> list[float]:
    return sorted({lr * multiple for multiple in multipliers})


def _quieten_lightning() -> None:
    """Its advice is for people who write the Trainer call; here we do."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
