"""Checks in every run that what should train moves and what should not does not."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from tl_experiments.errors import TrainingError
from tl_experiments.strategies.apply import blocks_of_each_module
from tl_experiments.training.sharding import local
from tl_experiments.types import ModelLayout, Phase

# Some tensors get their first gradient a step later than others (behind a residual branch that starts at zero).
_STEPS = 10
_CLEARLY = 8  # times the spacing; the schedule may have raised the rate since the step


class FreezeAudit:
    """Compares a model with itself before the phase; where it is divided, each process its share.

    Args:
        model: In the state that the phase starts from.
        layout: Its blocks.
        phase: What should train.
        optimizer: Over exactly the tensors that should.

    Raises:
        TrainingError: At once, if a trainable tensor is in no group or in several, or a frozen one is in any.
    """

    def __init__(self, model: nn.Module, layout: ModelLayout, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._phase = model, phase
        self._checked = False
        self._steps = 0
        self._without_gradient = set(phase.lr_multiplier)
        self._may_be_still = set(phase.lr_multiplier)
        self._shown: dict[str, Tensor] = {}  # whether a step was large enough; on the device, which nobody waits for
        # Copies on the CPU: device memory is what training is short of.
        self._before = {name: local(tensor.detach()).cpu().clone() for name, tensor in model.state_dict().items()}
        self._may_move = set(phase.lr_multiplier) | live_statistics(model, layout, phase)
        _check_groups(model, phase, optimizer)

    def see_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note what the optimizer step just taken should have moved; call after each step, until ``check``.

        A step of ``lr * gradient`` below the spacing of float32 around the weight changes nothing, and rightly so: that
        happens to SGD in a warm-up, and to tensors whose gradient is zero in theory, such as a bias before a BatchNorm.
        """
        self._steps += 1
        if self._checked or not (self._without_gradient or self._may_be_still):
            return
        rate = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._model.named_parameters():
            if name in self._may_be_still and parameter.grad is not None:
                self._without_gradient.discard(name)
                if self._steps == 1:
                    continue  # some optimizers only look around in their first step (ADOPT; Taniguchi et al., 2024)
                spacing = torch.finfo(parameter.dtype).eps * local(parameter.detach()).abs()
                shown = (rate[id(parameter)] * local(parameter.grad).abs() > _CLEARLY * spacing).any()
                self._shown[name] = shown | self._shown[name] if name in self._shown else shown
        if self._steps == 2:  # as a rule it is all there is to see
            self._read_what_has_shown()

    def _read_what_has_shown(self) -> None:
        """One transfer for all tensors."""
        if self._shown:
            shown = torch.stack(list(self._shown.values())).tolist()
            self._may_be_still -= {name for name, one in zip(self._shown, shown, strict=True) if one}
            self._shown.clear()

    def is_due(self, step: int, steps: int) -> bool:
        """Whether ``step`` steps are enough to judge."""
        return not self._checked and step >= min(_STEPS, steps)

    def check(self, when: str) -> None:
        """Every trainable tensor whose steps were large enough to show has moved; no frozen tensor or statistic has."""
        self._checked = True
        self._read_what_has_shown()
        self.check_frozen(when)
        if self._without_gradient:
            raise _broken(self._without_gradient, "trainable, but no gradient reaches them", when)
        state = self._model.state_dict()
        still = {
            name
            for name in self._phase.lr_multiplier
            if name not in self._may_be_still and _equal(state[name], self._before[name])
        }
        if still:
            raise _broken(still, "trainable and have gradients, but did not move", when)

    def check_frozen(self, when: str) -> None:
        """No frozen parameter has changed by a single bit, nor any statistic outside the blocks that update theirs."""
        state = self._model.state_dict()
        moved = {name for name in state.keys() - self._may_move if not _equal(state[name], self._before[name])}
        if moved:
            raise _broken(moved, "frozen, but moved", when)


def live_statistics(model: nn.Module, layout: ModelLayout, phase: Phase) -> set[str]:
    """Buffers that the plan lets move. From the plan alone: a wrong mode must not excuse itself."""
    if phase.norm_stats == "frozen":
        return set()
    trained = layout.trained_blocks(phase)
    owners = {name for name, _, blocks in blocks_of_each_module(model, layout) if blocks & trained}
    return {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in owners}


def _check_groups(model: nn.Module, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
    count = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    wrong = {name for name, p in model.named_parameters() if count[id(p)] != (name in phase.lr_multiplier)}
    if wrong:
        raise _broken(wrong, "not in exactly one optimizer group, or frozen and in one", "before the first step")


def _equal(now: Tensor, before: Tensor) -> bool:
    return torch.equal(local(now.detach()).cpu(), before)


def _broken(names: set[str], what: str, when: str) -> TrainingError:
    listed = sorted(names)
    return TrainingError(
        "freeze audit", f"{len(listed)} tensors are {what} {when}, e.g. {', '.join(listed[:3])}", "report this as a bug"
    )
