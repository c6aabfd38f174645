"""A plan on the clock: which optimizer steps belong to which phase, and where validation falls between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tl_experiments.types import Phase


@dataclass(frozen=True)
class PhaseSteps:
    """A phase and its steps.

    Args:
        number: 0, 1, ...
        phase: What trains.
        chunks: Half-open ranges of global optimizer steps, in order, cut at the ends of data epochs; the model is
            validated after each.
        last: Whether it is the plan's last phase, from which the final weights are chosen.
    """

    number: int
    phase: Phase
    chunks: tuple[tuple[int, int], ...]
    last: bool

    @property
    def first_step(self) -> int:
        """Global number of the phase's first optimizer step."""
        return self.chunks[0][0]

    def learning_rates(self, lr: float) -> list[float]:
        """The distinct rates at which the phase trains, ascending; ``lr`` is the base learning rate."""
        return sorted({lr * multiple for multiple in self.phase.lr_multiplier.values()})

    def last_lr(self, lr: float, schedule: Callable[[int], float], step: int) -> float:
        """The highest rate of any parameter, as a rule the head's, in the last of ``step`` steps of the run.

        Args:
            lr: Base learning rate.
            schedule: Step of the phase -> multiple of the rate.
            step: Optimizer steps done, over all phases; one of the phase's at least.
        """
        return lr * max(self.phase.lr_multiplier.values()) * schedule(step - 1 - self.first_step)

    @property
    def steps(self) -> int:
        """Optimizer steps in the phase."""
        return self.end_step - self.first_step

    @property
    def end_step(self) -> int:
        """Global number of the first optimizer step after the phase."""
        return self.chunks[-1][1]

    def chunks_from(self, step: int) -> tuple[tuple[int, int], ...]:
        """What is left of the chunks when ``step`` optimizer steps of the run are done."""
        return tuple((max(start, step), end) for start, end in self.chunks if end > step)

    def ends_at(self, step: int) -> bool:
        """Whether a chunk ends when ``step`` optimizer steps of the run are done."""
        return any(end == step for _, end in self.chunks)

    def changeable(self, model: nn.Module) -> list[str]:
        """Names in the model's state of everything that the phase can change: its parameters and all buffers."""
        frozen = {name for name, _ in model.named_parameters()} - self.phase.lr_multiplier.keys()
        return [name for name in model.state_dict() if name not in frozen]

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of everything that the phase can change."""
        state = model.state_dict()
        return {name: state[name].detach().clone() for name in self.changeable(model)}


def phase_steps(plan: Sequence[Phase], steps_per_epoch: int, epochs: int) -> tuple[PhaseSteps, ...]:
    """Lay the phases of ``plan`` over ``epochs`` passes of ``steps_per_epoch`` steps.

    Boundaries are counted in steps, so that more phases than epochs are no trouble. Where there are more phases than
    steps, a phase without a step of its own is left out; the last one, which is never cut short to nothing, follows.
    """
    total = steps_per_epoch * epochs
    starts = [math.floor(phase.start_fraction * total + 1e-9) for phase in plan]
    ranges = [(start, end) for start, end in zip(starts, [*starts[1:], total], strict=True)]
    kept = [(phase, start, end) for phase, (start, end) in zip(plan, ranges, strict=True) if end > start]
    return tuple(
        PhaseSteps(number, phase, _chunks(start, end, steps_per_epoch), number == len(kept) - 1)
        for number, (phase, start, end) in enumerate(kept)
    )


def _chunks(start: int, end: int, steps_per_epoch: int) -> tuple[tuple[int, int], ...]:
    cuts = [start]
    while cuts[-1] < end:
        cuts.append(min(end, (cuts[-1] // steps_per_epoch + 1) * steps_per_epoch))
    return tuple(itertools.pairwise(cuts))
