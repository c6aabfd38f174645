"""What a run does with its model, seen from outside, whichever way it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tl_experiments.config import TrainConfig
from tl_experiments.probes.stack import ProbeStack
from tl_experiments.records import RunRecord
from tl_experiments.training.model import TransferModel
from tl_experiments.training.run import run
from tl_experiments.types import Phase

State = dict[str, Tensor]


@dataclasses.dataclass
class Seen:
    """A run's model on its way.

    Args:
        starts: Each phase with the whole state at its start.
        steps: What trains after each optimizer step that was asked for, by its number from 1.
        end: The whole state when the run is over.
        record: Of the run.
    """

    starts: list[tuple[Phase, State]]
    steps: dict[int, State]
    end: State
    record: RunRecord

    def moved_while_frozen(self) -> list[str]:
        """Tensors of blocks that a phase does not train and that differ in a bit after it."""
        states = [*(state for _, state in self.starts[1:]), self.end]
        return [
            name
            for (phase, before), after in zip(self.starts, states, strict=True)
            for name in before
            if not _trains(phase, name) and not torch.equal(before[name], after[name])
        ]


def _trains(phase: Phase, name: str) -> bool:
    """Whether the phase trains a tensor, or a parameter beside a buffer."""
    module = name.rpartition(".")[0]
    return any(one.startswith(f"{module}.") for one in phase.lr_multiplier)


def watched(cfg: TrainConfig, folder: Path, at: tuple[int, ...] = (1, 100)) -> Seen:
    """``run``, and what is to be seen of its model."""
    starts: list[tuple[Phase, State]] = []
    models: list[TransferModel] = []
    steps: dict[int, State] = {}
    begin, count = TransferModel.begin, 0

    def noting_begin(self: TransferModel, phase: Phase) -> None:
        models.append(self)
        if not starts or starts[-1][0] is not phase:
            starts.append((phase, _copied(self.state_dict())))
        begin(self, phase)

    def note_step(found: State) -> None:
        nonlocal count
        count += 1
        if count in at:
            steps[count] = _copied(found)

    def of_optimizer(optimizer: torch.optim.Optimizer, *_: object) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if trained := {name: p.detach() for name, p in models[-1].named_parameters() if id(p) in held}:
            note_step(trained)  # a stack has an optimizer of its own, for other tensors

    with pytest.MonkeyPatch.context() as patch, _hooked(of_optimizer), _stack_steps(patch, note_step):
        patch.setattr(TransferModel, "begin", noting_begin)
        record = run(cfg, folder)
    return Seen(starts, steps, _copied(models[-1].state_dict()), record)


@contextmanager
def _hooked(note: object) -> Iterator[None]:
    handle = register_optimizer_step_post_hook(note)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _stack_steps(patch: pytest.MonkeyPatch, note: object) -> Iterator[None]:
    step = ProbeStack.step

    def noting(self: ProbeStack, *args: Tensor) -> Tensor:
        losses = step(self, *args)
        note({"head.weight": self.weight[0], "head.bias": self.bias[0]})  # type: ignore[operator]
        return losses

    patch.setattr(ProbeStack, "step", noting)
    yield


def _copied(state: State) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def distance(found: State, expected: State) -> float:
    """Of two sets of weights, relative to the second's norm."""
    assert found.keys() == expected.keys()
    difference = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    return float((difference / sum(float(tensor.double().square().sum()) for tensor in expected.values())) ** 0.5)
