"""The phases of a plan, one Lightning fit each."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch

from tl_experiments.config.schema import TrainConfig
from tl_experiments.seeds import derive
from tl_experiments.training.build import Parts
from tl_experiments.training.history import History
from tl_experiments.training.module import TransferModule
from tl_experiments.training.progress import progress_bars


def fit(
    cfg: TrainConfig, parts: Parts, history: History, accelerator: str, precision: str
) -> tuple[pl.Trainer, TransferModule]:
    """One fit a phase; ``history`` holds the chosen weights afterwards.

    The start of the last phase is validated too: it may be the best there is.

    Returns:
        The last phase's trainer and module.
    """
    _quieten_lightning()
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
            enable_progress_bar=False,  # Lightning's own; ours is a callback
            callbacks=progress_bars(phase),
            default_root_dir=history.folder,
        )
        with _interrupts_pass():
            if phase.last:
                trainer.validate(module, verbose=False)
            trainer.fit(module)
    return trainer, module


@contextmanager
def _interrupts_pass() -> Iterator[None]:
    """Lightning answers Ctrl-C with ``sys.exit(1)`` and ignores it from then on; here it stays a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _quieten_lightning() -> None:
    """Its advice is for people who write the Trainer call; here we do."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
