"""The one Lightning module. It asks the phase what trains; it never asks which strategy made the phase."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tl_experiments.config.optimization import Optimizer, Scheduler
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.errors import DivergedError
from tl_experiments.strategies.apply import param_groups
from tl_experiments.training.audit import FreezeAudit
from tl_experiments.training.history import History
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.model import TransferModel
from tl_experiments.training.optimization import build_optimizer, schedule
from tl_experiments.training.phases import PhaseSteps
from tl_experiments.types import Batch, Objective


class TransferModule(pl.LightningModule):
    """Trains one phase of a plan; a run is one module after another over the same model.

    Args:
        model: Backbone and head; its state is the only thing that passes from phase to phase.
        objective: What is minimised.
        data: Where batches come from.
        phase: What trains, over which optimizer steps, in which chunks between validations.
        optimizer: Fresh in each phase.
        scheduler: Fresh in each phase.
        lr: Base learning rate.
        history: Where each validation is entered.
    """

    def __init__(
        self,
        model: TransferModel,
        objective: Objective,
        data: TransferDataModule,
        phase: PhaseSteps,
        optimizer: Optimizer,
        scheduler: Scheduler,
        lr: float,
        history: History,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.data = data
        self.phase = phase
        self.optimizer_cfg = optimizer
        self.scheduler_cfg = scheduler
        self.lr = lr
        self.history = history
        self.audit: FreezeAudit | None = None
        self.predictions: Predictions | None = None
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        model.begin(phase.phase)

    # Data: Lightning asks for a loader at the start of each of its epochs, which are our chunks.

    def train_dataloader(self) -> Iterable[Any]:
        return self.data.train_batches(*self.phase.chunks[self.trainer.current_epoch])

    def val_dataloader(self) -> Iterable[Any]:
        return self.data.eval_loader("val")

    # Training

    def configure_optimizers(self) -> Any:
        groups = param_groups(self.model, self.phase.phase, self.lr, self.optimizer_cfg.weight_decay)
        optimizer = build_optimizer(self.optimizer_cfg, groups)
        multiplier = schedule(self.scheduler_cfg, self.phase.steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        # Lightning keeps the modes that it finds here, so they must be right before it looks.
        self.model.train()

    def on_train_start(self) -> None:
        self.audit = FreezeAudit(self.model, self.model.layout, self.phase.phase, self._optimizer())

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        loss = self.objective.loss(self.model, batch)
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.audit is not None
        self.audit.see_step(self._optimizer())  # gradients are still there, clipped as they were used
        if self.audit.is_due(self.global_step, self.phase.steps):
            self._refuse_non_finite_losses()
            self.audit.check(f"after {self.global_step} steps of the phase")

    def on_train_end(self) -> None:
        assert self.audit is not None
        self.audit.check_frozen("at the end of the phase")

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        return optimizer.optimizer

    def _refuse_non_finite_losses(self) -> None:
        """One transfer from the device a chunk, instead of one a step."""
        finite = torch.isfinite(torch.stack(self._losses)).cpu()
        if not finite.all():
            first = self.phase.first_step + self.global_step - len(finite) + int((~finite).nonzero()[0]) + 1
            raise DivergedError(
                "training", f"the loss is not finite at step {first}", "lower optimizer.lr or optimizer.lr_factor"
            )

    # Validation and test

    def _collect(self, batch: Batch, _index: int) -> None:
        logits = self.model(batch["image"]).float()
        self._outputs.append((batch["index"], batch["label"], logits))

    validation_step = _collect
    test_step = _collect

    def _gather(self) -> Predictions:
        index, label, logits = (torch.cat(parts).cpu() for parts in zip(*self._outputs, strict=True))
        self._outputs.clear()
        self.predictions = Predictions(index, label, logits)
        if not self.predictions.finite():
            step = self.phase.first_step + self.global_step
            raise DivergedError(
                "training", f"outputs are not finite at step {step}", "lower optimizer.lr or optimizer.lr_factor"
            )
        return self.predictions

    def on_validation_epoch_end(self) -> None:
        if self._losses:
            self._refuse_non_finite_losses()
        train_loss = float(torch.stack(self._losses).mean()) if self._losses else None
        self._losses.clear()
        step = self.phase.first_step + self.global_step
        self.history.enter(self.model, self.phase, step, self._gather(), train_loss, time.perf_counter())

    def on_test_epoch_end(self) -> None:
        self._gather()
