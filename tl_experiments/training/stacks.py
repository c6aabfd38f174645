"""Runs whose heads see the same batches in the same order, trained as one tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.config.optimization import AdamW
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.items import Split
from tl_experiments.errors import UserError
from tl_experiments.features.batches import CachedData
from tl_experiments.objectives import SupervisedObjective
from tl_experiments.probes import updates
from tl_experiments.probes.stack import ProbeStack, logits
from tl_experiments.records import STACKS_FOLDER, remove_resume_points
from tl_experiments.training.metrics import Predictions, diverged, first_non_finite
from tl_experiments.training.optimization import schedule
from tl_experiments.training.phases import PhaseSteps
from tl_experiments.training.probe import Outcome, Probe, Progress, rows_of_metrics
from tl_experiments.training.resume import ResumePoint, WritingTimer, read_resume_point

logger = logging.getLogger(__name__)

_MOST_OUTPUTS = 2**27  # numbers that the heads of a stack give for val, all together


def stacks(probes: Sequence[Probe]) -> list[list[Probe]]:
    """Those that see the same batches in the same order, with an optimizer of one kind, together."""
    found: dict[str, list[Probe]] = {}
    for probe in probes:
        cfg = probe.cfg
        optimizer = dataclasses.asdict(cfg.optimizer) | {"lr": None, "lr_factor": None, "weight_decay": None}
        batches = [probe.images, cfg.seed, cfg.trainer.batch_size, cfg.trainer.max_epochs]
        key = json.dumps([*batches, optimizer, dataclasses.asdict(cfg.head)], sort_keys=True)
        found.setdefault(key, []).append(probe)
    cut: list[list[Probe]] = []
    for group in found.values():
        spec = group[0].parts.data.spec
        largest = max(size for split, size in spec.sizes.items() if split != "train")
        most = max(1, _MOST_OUTPUTS // (largest * len(spec.classes)))
        cut += [group[start : start + most] for start in range(0, len(group), most)]
    return cut


def points_folder(stack: Sequence[Probe]) -> Path:
    """Where the resume points of a stack stand: a run's own folder, or beside those of the runs that share them.

    The name tells the stack from any other: a group that was split since has stacks, and points, of its own.
    """
    folder = stack[0].history.folder
    if len(stack) == 1:
        return folder
    digest = hashlib.sha256(" ".join(probe.identity for probe in stack).encode()).hexdigest()[:12]
    return folder.parent / STACKS_FOLDER / digest


def remove_stack_points(stack: Sequence[Probe]) -> None:
    """Once all of its runs are done."""
    folder = points_folder(stack)
    remove_resume_points(folder)
    if len(stack) > 1:
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def train_stack(stack: Sequence[Probe], cached: CachedData, progress: Progress) -> list[Outcome | UserError]:
    """Train the heads of a stack, from its newest resume point; in its order what each leaves, or how it diverged.

    Raises:
        Interrupted: A signal asked for it, after a resume point was written into the first run's folder.
    """
    run = _Run(stack, dataclasses.replace(cached, data=stack[0].parts.data), progress)
    for phase in stack[0].parts.phases:
        if phase.end_step > run.step or phase.last:
            run.train(phase)
    return run.test()


class _Run:
    """A stack on its way.

    Args:
        stack: Runs with equal batches.
        data: Of the first, which is everybody's.
        progress: Called at every validation.
    """

    def __init__(self, stack: Sequence[Probe], data: CachedData, progress: Progress) -> None:
        self.stack, self.data, self.progress = stack, data, progress
        self.device = data.evaluation.device
        self.errors: dict[int, UserError] = {}
        self.step = 0
        self._timer = WritingTimer(stack[0].cfg.trainer.resume_interval_s)
        self._point = self._restore()
        self._weight = torch.stack([_linear(probe).weight for probe in stack]).detach().to(self.device)
        self._bias = torch.stack([_linear(probe).bias for probe in stack]).detach().to(self.device)

    def train(self, phase: PhaseSteps) -> None:
        """One phase, validated at the start if it is the last, and after each of its chunks."""
        heads = self._heads()
        rates = self._rates(phase)
        if self._point is not None and self._point.step > phase.first_step:
            heads.load_state_dict(self._point.model)
        elif phase.last:
            self._validate(heads, phase, phase.first_step, None)
        for first, end in phase.chunks_from(self.step):
            losses = []
            for number, batch in enumerate(self.data.train_batches(first, end), start=first - phase.first_step):
                features = batch["activations"][0].float()
                losses.append(heads.step(features, batch["label"], rates[number]))
            self._validate(heads, phase, end, torch.stack(losses).cpu())
            self.step = end
            if self._timer.is_due() or interrupt.requested() is not None:
                self._save(heads)
            interrupt.check(f"after step {end} of {self.stack[0].parts.phases[-1].end_step}")
        self._weight, self._bias = heads.weight, heads.bias

    def test(self) -> list[Outcome | UserError]:
        """Outputs on the test sets, each head with the weights that val chose."""
        best = [probe.history.best_state for probe in self.stack]
        weight, bias = (
            torch.stack([state.get(f"head.{name}", now) for state, now in zip(best, held, strict=True)]).to(self.device)
            for name, held in (("weight", self._weight), ("bias", self._bias))
        )
        last = self.stack[0].parts.phases[-1].end_step
        found: list[dict[Split, Predictions]] = [{} for _ in self.stack]
        for split in self.data.data.tests:
            index, label, outputs = self._outputs(weight, bias, split)
            for number, output in enumerate(outputs):
                if number not in self.errors and not torch.isfinite(output).all():
                    self.errors[number] = diverged(f"outputs are not finite at step {last}")
                found[number][split] = Predictions(index, label, output)
        return [self.errors.get(number, Outcome(tests, last)) for number, tests in enumerate(found)]

    def _restore(self) -> ResumePoint | None:
        point = read_resume_point(points_folder(self.stack), self._identity())
        if point is not None:
            self.step = point.step
            for probe, state in zip(self.stack, point.history["runs"], strict=True):
                probe.history.load_state(state)
                probe.history.started -= point.elapsed_s
            self.errors = {number: diverged(what) for number, what in point.history["diverged"].items()}
            logger.info("resuming  after step %d of %d", point.step, self.stack[0].parts.phases[-1].end_step)
        return point

    def _save(self, heads: ProbeStack) -> None:
        with self._timer:
            ResumePoint(
                run=self._identity(),
                step=self.step,
                model=heads.state_dict(),
                optimizer={},
                precision={},
                ema={},
                history={
                    "runs": [probe.history.state() for probe in self.stack],
                    "diverged": {number: error.what for number, error in self.errors.items()},
                },
                losses=torch.empty(0),
                accumulation=1,
                elapsed_s=time.perf_counter() - self.stack[0].history.started,
            ).write(points_folder(self.stack))

    def _identity(self) -> dict[str, Any]:
        lead = self.stack[0].parts
        return {
            "way": "heads on fixed features",
            "jobs": [probe.identity for probe in self.stack],
            "data": lead.data.spec.fingerprint,
            "weights": lead.weights.sha256 or lead.weights.source,
        }

    def _heads(self) -> ProbeStack:
        configs = [probe.cfg for probe in self.stack]
        return ProbeStack(
            self._weight,
            self._bias,
            _update(configs[0]),
            weight_decay=[cfg.optimizer.weight_decay for cfg in configs],
            label_smoothing=[cfg.objective.label_smoothing for cfg in configs],
            clip_norm=[cfg.trainer.gradient_clip_norm for cfg in configs],
            class_weight=self._class_weight(),
        )

    def _class_weight(self) -> Tensor | None:
        """``(K, C)``; None where no head has any."""
        objectives = [probe.parts.objective for probe in self.stack]
        weights = [one.class_weight if isinstance(one, SupervisedObjective) else None for one in objectives]
        if all(weight is None for weight in weights):
            return None
        even = torch.ones(self._bias.shape[1])
        return torch.stack([even if weight is None else weight for weight in weights]).to(self._bias)

    def _rates(self, phase: PhaseSteps) -> Tensor:
        """Learning rate of each head at each step of the phase, ``(steps, K)``."""
        (multiple,) = set(phase.phase.lr_multiplier.values())  # the head is one layer
        columns = []
        for probe in self.stack:
            multiplier = schedule(probe.cfg.scheduler, phase.steps)
            columns.append([probe.parts.lr * multiple * multiplier(step) for step in range(phase.steps)])
        return torch.tensor(columns).T.contiguous().to(self.device)

    def _validate(self, heads: ProbeStack, phase: PhaseSteps, step: int, losses: Tensor | None) -> None:
        """Enter the validation after ``step`` steps; ``losses`` are those since the last, ``(steps, K)``."""
        index, label, outputs = self._outputs(heads.weight, heads.bias, "val")
        metrics = rows_of_metrics(outputs, label)
        now = time.perf_counter()
        for number, probe in enumerate(self.stack):
            if number in self.errors:
                continue
            if losses is not None and (bad := first_non_finite(losses[:, number])) is not None:
                self.errors[number] = diverged(f"the loss is not finite at step {step - len(losses) + bad + 1}")
            elif not torch.isfinite(outputs[number]).all():
                self.errors[number] = diverged(f"outputs are not finite at step {step}")
            else:
                train_loss = None if losses is None else float(losses[:, number].mean())
                multiplier = schedule(probe.cfg.scheduler, phase.steps)
                lr = None if losses is None else phase.last_lr(probe.parts.lr, multiplier, step)
                val = Predictions(index, label, outputs[number].clone())  # a view would keep all heads' outputs
                probe.history.enter(
                    phase, step, val, _Weights(heads, number), train_loss, now, lr, metrics[number]
                )  # fmt: skip
            self.progress(probe.position, step, probe.parts.phases[-1].end_step)

    def _outputs(self, weight: Tensor, bias: Tensor, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """Items ``(n,)``, labels ``(n,)`` and logits ``(K, n, C)``, on the CPU."""
        index, label, outputs = [], [], []
        for batch in self.data.eval_loader(split):
            index.append(batch["index"])
            label.append(batch["label"])
            outputs.append(logits(weight, bias, batch["activations"][0].float()))
        return torch.cat(index).cpu(), torch.cat(label).cpu(), torch.cat(outputs, dim=1).cpu()


@dataclass(frozen=True)
class _Weights:
    """Copies of one head of a stack, under the names of its model."""

    heads: ProbeStack
    number: int

    def __call__(self) -> dict[str, Tensor]:
        return {
            "head.weight": self.heads.weight[self.number].clone(),
            "head.bias": self.heads.bias[self.number].clone(),
        }


def _linear(probe: Probe) -> Any:
    return probe.parts.model.head


def _update(cfg: TrainConfig) -> updates.AdamW | updates.SGD:
    if isinstance(cfg.optimizer, AdamW):
        return updates.AdamW((cfg.optimizer.betas[0], cfg.optimizer.betas[1]))
    assert cfg.optimizer.name == "sgd", "group_key lets no other optimizer through"
    return updates.SGD(cfg.optimizer.momentum, cfg.optimizer.nesterov)
