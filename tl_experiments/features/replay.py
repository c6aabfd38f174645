"""A recorded computation for any number of images, or a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tl_experiments.features.record import Attribute, Recording, ReplayError, Size, Step, Value, leaves, map_leaves


def for_any_size(few: Recording, more: Recording) -> list[Step]:
    """The steps of two recordings of one model, numbers that depend on the number of images written as ``Size``.

    Args:
        few: Of n images.
        more: Of n + 1 other images.

    Raises:
        ReplayError: They differ in more than numbers.
    """
    n = len(few.result)
    if len(few.steps) != len(more.steps) or few.output != more.output:
        raise ReplayError("its calls depend on the images")
    return [_merged_step(first, second, n) for first, second in zip(few.steps, more.steps, strict=True)]


def _merged_step(few: Step, more: Step, n: int) -> Step:
    if (few.module, few.call) != (more.module, more.call) or few.kwargs.keys() != more.kwargs.keys():
        raise ReplayError("its calls depend on the images")
    try:
        args = tuple(_merged(list(few.args), list(more.args), n))
        kwargs = {key: _merged(value, more.kwargs[key], n) for key, value in few.kwargs.items()}
    except ReplayError as error:
        raise ReplayError(f"{few.name} is called with {error}") from None
    return replace(few, args=args, kwargs=kwargs, random=few.random or more.random)


def _merged(few: Any, more: Any, n: int) -> Any:
    if isinstance(few, Tensor) and isinstance(more, Tensor):
        if few.shape == more.shape and few.dtype == more.dtype and torch.equal(few, more):
            return few
        raise ReplayError("a tensor of unknown origin")
    if type(few) is type(more):
        if isinstance(few, (tuple, list)):
            if len(few) != len(more):
                raise ReplayError("more tensors for more images")
            items = [_merged(a, b, n) for a, b in zip(few, more, strict=True)]
            return items if isinstance(few, list) else tuple(items)
        if isinstance(few, dict) and few.keys() == more.keys():
            return {key: _merged(few[key], more[key], n) for key in few}
        if isinstance(few, slice):
            return slice(*(_merged(getattr(few, k), getattr(more, k), n) for k in ("start", "stop", "step")))
        if type(few) is int and few != more:
            return Size(more - few, few - n * (more - few))
        if few == more:
            return few
    raise ReplayError(f"{few!r:.40} for {n} images and {more!r:.40} for {n + 1}")


class Replay:
    """Some steps of a recording, run again.

    Args:
        model: Whose attributes the steps read.
        steps: All of the recording.
        wanted: What to compute.
        given: What need not be computed.
    """

    def __init__(
        self, model: nn.Module, steps: Sequence[Step], wanted: Sequence[Value], given: Sequence[Value]
    ) -> None:
        self.wanted = tuple(wanted)
        self._given = tuple(given)
        needed: set[int] = set()
        pending = [value.step for value in wanted if value not in given]
        while pending:
            number = pending.pop()
            if number not in needed and number >= 0:
                needed.add(number)
                pending += [v.step for v in steps[number].inputs() if isinstance(v, Value) and v not in given]
        self.steps = {number: steps[number] for number in sorted(needed)}
        last = {value: number for number, step in self.steps.items() for value in step.inputs() if type(value) is Value}
        self._drop: dict[int, list[Value]] = {number: [] for number in self.steps}
        for value, number in last.items():
            if value not in self.wanted:
                self._drop[number].append(value)
        names = {leaf.name for step in self.steps.values() for leaf in step.inputs() if isinstance(leaf, Attribute)}
        self._owners = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}

    def __call__(self, tensors: Sequence[Tensor], n: int) -> list[Tensor]:
        """What is wanted, from the tensors that are given, of ``n`` images."""
        known = dict(zip(self._given, tensors, strict=True))

        def resolved(argument: Any) -> Any:
            match argument:
                case Value():
                    return known[argument]
                case Attribute(name):
                    return getattr(*self._owners[name])
                case Size(per_image, constant):
                    return per_image * n + constant
            return argument

        for number, step in self.steps.items():
            result = step.call(*map_leaves(step.args, resolved), **map_leaves(dict(step.kwargs), resolved))
            found = (leaf for leaf in leaves(result) if isinstance(leaf, Tensor))
            known |= {Value(number, position): tensor for position, tensor in enumerate(found)}
            for value in self._drop[number]:
                del known[value]
        return [known[value] for value in self.wanted]

    def text(self) -> str:
        """A line for each step, numbered from 0, then what is wanted; the same in every process."""
        number_of = {number: position for position, number in enumerate(self.steps)}

        def renumbered(leaf: Any) -> Any:
            return replace(leaf, step=number_of.get(leaf.step, -1)) if isinstance(leaf, Value) else leaf

        lines = [
            replace(step, args=map_leaves(step.args, renumbered), kwargs=map_leaves(dict(step.kwargs), renumbered))
            for step in self.steps.values()
        ]
        wanted = [f"%{value.step}.{value.position}" for value in map(renumbered, self.wanted)]
        return "\n".join([*(f"%{number} = {step.text()}" for number, step in enumerate(lines)), f"return {wanted}"])

    def state(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant that the steps read, by its name in the model."""
        found: dict[str, Tensor] = {name: getattr(*owner) for name, owner in self._owners.items()}
        for number, step in self.steps.items():
            if isinstance(step.call, nn.Module):
                for name, tensor in (*step.call.named_parameters(), *step.call.named_buffers()):
                    found[f"{step.module}.{name}"] = tensor
            constants = [leaf for leaf in step.inputs() if isinstance(leaf, Tensor)]
            found |= {f"constant.{number}.{position}": tensor for position, tensor in enumerate(constants)}
        return {name: tensor.detach() for name, tensor in sorted(found.items())}
