"""The one Lightning module. It asks the phase what trains; it never asks which strategy made the phase."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.dataset import Batches
from tl_experiments.interrupt import Interrupted
from tl_experiments.strategies.apply import param_groups
from tl_experiments.training.audit import FreezeAudit, live_statistics
from tl_experiments.training.build import Parts
from tl_experiments.training.caching import Cached
from tl_experiments.training.ema import Ema
from tl_experiments.training.history import History
from tl_experiments.training.losses import Losses, Signals
from tl_experiments.training.memory import (
    Statistics,
    forward_in_parts,
    is_out_of_memory,
    release_memory,
    split_batch,
)
from tl_experiments.training.metrics import Predictions, diverged, first_non_finite
from tl_experiments.training.optimization import build_optimizer, restore_optimizer, schedule
from tl_experiments.training.parallel import least_images
from tl_experiments.training.phases import PhaseSteps
from tl_experiments.training.randomness import seed_step
from tl_experiments.training.ranks import Ranks
from tl_experiments.training.resume import ResumePoint
from tl_experiments.training.sharding import undivided
from tl_experiments.types import Batch

logger = logging.getLogger(__name__)


class TransferModule(pl.LightningModule):
    """Trains one phase of a plan; a run is one module after another over the same model.

    Args:
        cfg: Of the run.
        parts: Model, data, objective. The model's state is the only thing that passes from phase to phase.
        phase: What trains, over which optimizer steps, in which chunks between validations.
        history: Where each validation is entered.
        cached: The activations that the phase trains on; None computes its frozen part in every step.
        point: Where to go on; None begins the phase.
        accumulation: Parts in which each batch is computed.
        save: Called with this module at the end of each chunk, and with True where a signal ends the run.
        ranks: The processes that train together.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        parts: Parts,
        phase: PhaseSteps,
        history: History,
        *,
        cached: Cached | None,
        point: ResumePoint | None,
        accumulation: int,
        save: Callable[[TransferModule, bool], None],
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        self.model = parts.model
        self.phase = phase
        self.history = history
        self.data = parts.data if cached is None else cached.data
        self.accumulation = accumulation
        self.point = point
        self.chunks = phase.chunks_from(point.step if point else phase.first_step)
        self.audit: FreezeAudit | None = None
        self.predictions: Predictions | None = None
        self.ema: Ema | None = None
        self.ranks = ranks
        self._save = save
        self._schedule = schedule(cfg.scheduler, phase.steps)
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._loss: Tensor | None = None  # of the step in progress
        self.losses = Losses(ranks, point.losses if point else None)  # since the last validation
        self._signals = Signals(ranks)
        parts.model.begin(phase.phase)
        self._logits = parts.model.logits if cached is None else cached.logits
        backend = cfg.trainer.compile_backend  # compiled anew in each phase, which has gradients of its own
        self._compute = torch.compile(self._logits, backend=backend) if backend else self._logits

    @property
    def step(self) -> int:
        """Optimizer steps of the run that are done."""
        return (self.chunks[0][0] if self.chunks else self.phase.end_step) + self.global_step

    # Data: Lightning asks for a loader at the start of each of its epochs, which are our chunks.

    def train_dataloader(self) -> Iterable[Any]:
        return self.fetching(self.data.train_batches(*self.chunks[self.trainer.current_epoch]))

    def val_dataloader(self) -> Iterable[Any]:
        return self.fetching(self.data.eval_loader("val"))

    def fetching(self, batches: Batches) -> Batches:
        """The same batches; a signal that comes while one is made, which may mean a whole split, ends the run there."""

        def start() -> Iterator[Batch]:
            coming = iter(batches)
            for number in itertools.count():
                try:
                    with interrupt.held(self.ranks.world_size > 1):  # the others wait for this batch
                        batch = next(coming)
                except StopIteration:
                    return
                except Interrupted as error:
                    self.end(error.signum)
                if number == 0:  # perhaps after a whole split was decoded
                    self.ranks.wait()
                yield batch

        return Batches(start, len(batches))

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = param_groups(self.model, self.phase.phase, self.parts.lr, self.cfg.optimizer.weight_decay)
        optimizer = build_optimizer(self.cfg.optimizer, groups)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if self.point is not None:
            restore_optimizer(optimizer, self.point.optimizer)
        return optimizer

    def on_fit_start(self) -> None:
        # Lightning keeps the modes that it finds here, so they must be right before it looks.
        self.model.train()

    def on_train_start(self) -> None:
        """What holds on to the model's tensors begins here, where they are on their device."""
        interrupt.take_back()  # Lightning's own would end the process at SIGTERM with exit code 0 and without a point
        self.audit = FreezeAudit(self.model, self.model.layout, self.phase.phase, self.torch_optimizer())
        live = self._live()
        self._before_step, self._before_backward = (Statistics(self.model, live) for _ in range(2))
        self._smallest_part = least_images(self.cfg.trainer, bool(live))
        self._begin_average()

    def on_train_batch_start(self, *_: Any) -> None:
        multiplier = self._schedule(self.step - self.phase.first_step)
        for group in self.torch_optimizer().param_groups:
            group["lr"] = group["initial_lr"] * multiplier

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Nothing: Lightning asks between forward and backward, when gradients of earlier parts are there already."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One step, computed in smaller parts if the memory does not hold its gradients.

        An optimizer that finds no memory for its own state may have moved a part of the weights: that ends the run.
        """
        assert optimizer_closure is not None
        computed = False

        def closure() -> Any:
            nonlocal computed
            result = optimizer_closure()
            computed = True
            return result

        most = self.cfg.trainer.batch_size // self._smallest_part
        self._before_step.keep()
        while True:
            try:
                return super().optimizer_step(epoch, batch_idx, optimizer, closure)
            except RuntimeError as error:
                fail = self.cfg.trainer.on_out_of_memory == "fail" or self.accumulation >= most
                if computed or fail or not is_out_of_memory(error):
                    raise
            self.accumulation = min(2 * self.accumulation, most)
            self.torch_optimizer().zero_grad()
            self._before_step.put_back()
            release_memory()
            logger.warning(
                "out of memory at step %d: batches of %d are computed in %d parts from here on",
                self.step + 1, self.cfg.trainer.batch_size, self.accumulation,
            )  # fmt: skip

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The loss of the batch; gradients of all parts but the last are added up on the way."""
        seed_step(self.cfg.seed, self.step, self.device, self.ranks.rank)
        self.torch_optimizer().zero_grad()
        objective = self.parts.objective
        whole, parts = self._whole_weight(batch), self._parts(batch)
        batch = {name: value for name, value in batch.items() if name != "whole"}  # type: ignore[assignment]
        *earlier, last = split_batch(batch, parts, self._smallest_part)
        total = torch.zeros((), device=self.device)
        for part in earlier:
            loss = objective.loss(self._compute, part) * (objective.total_weight(part) / whole)
            total += loss.detach()
            # Scaled as the precision asks, as Lightning does the last; DDP exchanges nothing before that one's
            self.trainer.strategy.backward(loss, None)
        loss = objective.loss(self._compute, last) * (objective.total_weight(last) / whole)
        self._loss = total + loss.detach()
        return loss

    def _parts(self, batch: Batch) -> int:
        """In how many parts the batch is computed: as many in each process, since a divided model meets in each."""
        least = self.parts.data.share.least_of(len(batch.get("whole", batch["label"])))
        return max(1, min(self.accumulation, least // self._smallest_part))

    def _whole_weight(self, batch: Batch) -> Tensor | float:
        """What the loss of a part is divided by: the weight of the batch over all processes.

        DDP takes the mean of the processes' gradients, where the sum is wanted: hence their number. Labels of the whole
        batch are known everywhere, so that nobody has to ask. A part that another process has too does not count.
        """
        objective, ranks = self.parts.objective, self.ranks
        if "whole" not in batch:
            return objective.total_weight(batch)
        labels = batch["whole"]
        if not self.parts.data.share.counts(len(labels)):
            return math.inf
        # Where labels are mixed each image weighs the same, whatever its target
        whole: Batch = {"label": labels, "index": labels}
        if "target" in batch:
            whole["target"] = batch["target"]
        return objective.total_weight(whole) / ranks.world_size

    def _live(self) -> set[str]:
        return live_statistics(self.model, self.model.layout, self.phase.phase)

    def _share_statistics(self) -> None:
        """Each process normalises with statistics of its own part and keeps its own running ones; the first's count."""
        if self.ranks.world_size == 1:
            return
        live, state = sorted(self._live()), self.model.state_dict()
        self.ranks.take_first(state[name] for name in live if name in state)
        if self.ema is not None:
            self.ranks.take_first(self.ema.average[name] for name in live if name in self.ema.average)

    def on_before_backward(self, _loss: Tensor) -> None:
        """Gradient checkpointing computes the forward pass again in the backward pass."""
        if self.cfg.trainer.gradient_checkpointing:
            self._before_backward.keep()

    def on_after_backward(self) -> None:
        if self.cfg.trainer.gradient_checkpointing:
            self._before_backward.put_back()

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.audit is not None
        assert self._loss is not None
        self.losses.add(self._loss)
        if self.ema is not None:
            self.ema.update(self.model, self.step - self.phase.first_step)
        self.audit.see_step(self.torch_optimizer())  # gradients are still there, clipped as they were used
        if self.audit.is_due(self.global_step, self.phase.end_step - self.chunks[0][0]):
            self._refuse_non_finite_losses()
            self.audit.check(f"after {self.global_step} steps of the phase")
        if self._signals.due(self.step):
            self._end_if_asked()

    def on_train_epoch_end(self) -> None:
        """Lightning calls this after the validation at the end of the chunk."""
        self._end_if_asked()
        self._save(self, False)

    def on_train_end(self) -> None:
        assert self.audit is not None
        self.audit.check_frozen("at the end of the phase")
        self._share_statistics()
        self.ranks.check_equal(undivided(self.model), f"after step {self.step}")

    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside Lightning's."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        return optimizer.optimizer

    def optimizer_state(self) -> dict[str, Any]:
        """What the phase's optimizer knows; empty before its first step."""
        if self.trainer.optimizers:
            return self.trainer.optimizers[0].state_dict()
        return self.point.optimizer if self.point else {}

    def _begin_average(self) -> None:
        if self.cfg.trainer.ema_decay is not None and self.ema is None:
            self.ema = Ema(self.model, self.phase.changeable(self.model), self.cfg.trainer.ema_decay)
            if self.point is not None:
                self.ema.load(self.point.ema)

    def end(self, signum: int) -> NoReturn:
        """Write a resume point, between two steps, and end the run for a signal."""
        self._share_statistics()
        if self.ema is not None:
            self.ema.show(self.model, False)  # the weights that train are saved
        self._save(self, True)
        raise Interrupted(signum, f"after step {self.step} of {self.parts.phases[-1].end_step}")

    def _end_if_asked(self) -> None:
        """Where a signal has asked for it, write a resume point and end the run."""
        signum = self._signals.received(self.step)
        if signum is not None:
            self.end(signum)

    def _refuse_non_finite_losses(self) -> None:
        losses = self.losses.of_all()
        bad = first_non_finite(losses)
        if bad is not None:
            raise diverged(f"the loss is not finite at step {self.step - len(losses) + bad + 1}")

    # Validation and test

    def on_validation_start(self) -> None:
        interrupt.take_back()
        self._begin_average()
        self._share_statistics()
        if self.ema is not None:
            self.ema.show(self.model, True)

    def on_validation_end(self) -> None:
        if self.ema is not None:
            self.ema.show(self.model, False)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._end_if_asked()

    def on_test_start(self) -> None:
        interrupt.take_back()

    def on_test_batch_end(self, *_: Any) -> None:
        self._end_if_asked()

    def _collect(self, batch: Batch, _index: int) -> None:
        if self.cfg.trainer.on_out_of_memory == "fail":
            logits = self._logits(batch).float()
        else:
            logits = forward_in_parts(self._logits, batch).float()
        self._outputs.append((batch["index"], batch["label"], logits))

    validation_step = _collect
    test_step = _collect

    def _gather(self) -> Predictions:
        index, label, logits = (self.ranks.gather_rows(torch.cat(parts)) for parts in zip(*self._outputs, strict=True))
        self._outputs.clear()
        if self.ranks.world_size > 1:  # into the order of the split, which rises, each image once
            first = torch.from_numpy(np.unique(index.numpy(), return_index=True)[1])
            index, label, logits = index[first], label[first], logits[first]
        self.predictions = Predictions(index, label, logits)
        if not self.predictions.finite():
            raise diverged(f"outputs are not finite at step {self.step}")
        return self.predictions

    def on_validation_epoch_end(self) -> None:
        self._refuse_non_finite_losses()
        losses = self.losses.of_all()
        train_loss = float(losses.mean()) if len(losses) else None
        self.losses.clear()
        lr = self.phase.last_lr(self.parts.lr, self._schedule, self.step) if train_loss is not None else None
        val = self._gather()
        weights = partial(self.phase.weights, self.model)
        self.history.enter(self.phase, self.step, val, weights, train_loss, time.perf_counter(), lr)
        self.history.check_prospects(self.parts.phases[-1].end_step)
        if self.out_of_patience():
            logger.info("stopping  after step %d of %d: val got no better", self.step, self.phase.end_step)
            self.trainer.should_stop = True

    def out_of_patience(self) -> bool:
        """Whether early stopping ends the phase here."""
        patience = self.cfg.trainer.early_stopping_patience
        return patience is not None and self.phase.last and self.history.validations_since_best() >= patience

    def on_test_epoch_end(self) -> None:
        self._gather()
