"""A model cut at its frozen prefix, by the flow of data: what is computed once, and what in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tl_experiments.errors import first_line
from tl_experiments.features.halves import Prefix, Tail, edges_of
from tl_experiments.features.record import (
    Attribute,
    Recording,
    ReplayError,
    Step,
    Value,
    depend_on,
    generator_of,
    record,
)
from tl_experiments.features.replay import Replay, for_any_size
from tl_experiments.strategies.apply import blocks_of_each_module
from tl_experiments.types import ModelLayout, Phase

_TOLERANCE = 1e-5  # of the largest number: float32 rounding of the same kernels on as many images
_OTHER_KERNELS = 1e-2  # where they do; rows of other images differ by more
_RANDOM = frozenset(["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"])
_IMAGE = Value(-1)


class _Spec(Protocol):
    @property
    def image_size(self) -> int: ...
    @property
    def channels(self) -> int: ...


class _Backbone(Protocol):
    @property
    def input_spec(self) -> _Spec: ...


class Splittable(Protocol):
    """Backbone, head and the layout of both; ``begin`` has frozen what the phase does not train."""

    layout: ModelLayout
    mean: Tensor

    @property
    def backbone(self) -> _Backbone: ...


@dataclass(frozen=True)
class Split:
    """A model in two.

    Args:
        prefix: uint8 images ``(n, channels, size, size)`` to what crosses the cut, ``(n, ...)`` each: without gradient,
            contiguous, each with a storage of its own.
        tail: What crosses the cut to logits ``(n, n_classes)``; it shares the model's parameters and modes.
        prefix_state: Every parameter and buffer that the prefix reads, by its name in the model.
        cut: Where, for a reader, for example ``after layer3.1``.
        program: The calls of the prefix, a line each; two prefixes of equal program and state compute the same.
        flops: Floating-point operations of the prefix per image.
    """

    prefix: Callable[[Tensor], tuple[Tensor, ...]]
    tail: nn.Module
    prefix_state: Mapping[str, Tensor]
    cut: str
    program: str
    flops: int


def split(model: Splittable, phase: Phase) -> Split | str:
    """Cut ``model``, as ``phase`` freezes it, before the first thing that trains.

    The prefix is all that depends on the image and on no block of which the phase trains anything. Numbers are compared
    on random images, in eval and in train mode, before the cut is believed. The model is left as it was. Call it after
    ``model.begin(phase)`` and after the model has been moved to its device; a cut is of this phase and device.

    Returns:
        The two parts, or in one line why there are none.
    """
    try:
        return _Cut(model, phase).split()
    except ReplayError as error:
        return str(error)
    except Exception as error:  # whatever goes wrong here, the model itself can still be trained
        return f"it cannot be cut ({first_line(error)})"


class _Cut:
    """The work of ``split``."""

    def __init__(self, model: Splittable, phase: Phase) -> None:
        self.layout = model.layout
        self.module = cast(nn.Module, model)
        trained = model.layout.trained_blocks(phase)
        self.trained = {name for block in model.layout.all_blocks if block.name in trained for name in block.parameters}
        self.trained_modules: set[nn.Module] = set()
        self.leaves: dict[nn.Module, str] = {}
        for name, module, blocks in blocks_of_each_module(self.module, model.layout):
            if blocks <= trained or not blocks & trained:
                self.leaves[module] = name
            if blocks & trained:
                self.trained_modules.add(module)
        self.checkpoints = any(
            getattr(module, "grad_checkpointing", False) and module not in self.leaves
            for module in self.module.modules()
        )
        spec = model.backbone.input_spec
        generator = torch.Generator().manual_seed(0)
        shape = (5, spec.channels, spec.image_size, spec.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(model.mean.device)
        self.few, self.more = images[:2], images[2:]

    def split(self) -> Split:
        if self.checkpoints:  # outside leaves it would be lost, and the memory that it saves
            raise ReplayError("gradient checkpointing spans the cut")
        recordings = {mode: [self._record(images, mode) for images in (self.few, self.more)] for mode in (False, True)}
        steps = {mode: for_any_size(few, more) for mode, (few, more) in recordings.items()}
        values = {mode: self._edges(steps[mode], recordings[mode][0].output) for mode in steps}
        parts = {mode: Replay(self.module, steps[mode], values[mode], [_IMAGE]) for mode in steps}
        prefix = Prefix(parts[False], edges_of(values[False], *recordings[False]))
        program = parts[False].text()
        if program != parts[True].text():
            raise ReplayError("its frozen part computes something else in train mode")
        state = parts[False].state()
        if not state.keys() & self.layout.names():
            raise ReplayError("nothing frozen stands before what the phase trains")
        rest = {mode: Replay(self.module, steps[mode], [recordings[mode][0].output], values[mode]) for mode in steps}
        tail = Tail(self.module, rest, prefix.edges)
        activations = prefix(self.more)
        for mode in (False, True):
            self._check(tail, activations, recordings[mode][1].result, mode)
        flops = self._check_one(prefix, tail, activations)
        return Split(prefix, tail, state, _cut(steps[False], values[False]), program, flops)

    def _record(self, images: Tensor, mode: bool) -> Recording:
        with _trial(self.module, mode):
            return record(self.module, self.leaves, images)

    def _edges(self, steps: Sequence[Step], output: Value) -> list[Value]:
        """What the tail reads of the prefix, in the order of its making."""
        of_image, of_trained = depend_on(_IMAGE, steps), set[int]()
        for number, step in enumerate(steps):
            inputs = step.inputs()
            sources = {leaf.step for leaf in inputs if isinstance(leaf, Value)}
            trains = step.call in self.trained_modules or any(
                isinstance(leaf, Attribute) and leaf.name in self.trained for leaf in inputs
            )
            if trains or step.random or step.name.rpartition(".")[2] in _RANDOM or sources & of_trained:
                of_trained.add(number)
        found: set[Value] = set()
        seen: set[int] = set()
        pending = [output]
        while pending:
            value = pending.pop()
            if value.step in of_image - of_trained:
                found.add(value)
            elif value.step not in seen:
                seen.add(value.step)
                pending += [leaf for leaf in steps[value.step].inputs() if isinstance(leaf, Value)]
        if _IMAGE in found:
            raise ReplayError("nothing frozen stands before what the phase trains")
        return sorted(found, key=lambda value: (value.step, value.position))

    def _check(self, tail: Tail, activations: Sequence[Tensor], live: Tensor, mode: bool) -> None:
        """The two parts against the model, of three images; what the tail overwrites is copied from then on."""
        versions = [activation._version for activation in activations]
        copies = [activation.clone() for activation in activations]
        with _trial(self.module, mode):
            _check_close(tail(*activations), live)
        for i, (activation, copy) in enumerate(zip(activations, copies, strict=True)):
            tail.changes[i] |= activation._version != versions[i]
            activation.copy_(copy)

    def _check_one(self, prefix: Prefix, tail: Tail, of_three: Sequence[Tensor]) -> int:
        """The two parts against the model, of the first image alone; operations of the prefix."""
        image = self.more[:1]
        with _trial(self.module, mode=False):
            with FlopCounterMode(display=False) as counter:
                activations = prefix(image)
            for one, three in zip(activations, of_three, strict=True):
                _check_close(one, three[:1], _OTHER_KERNELS)  # rows in the order of the images
            _check_close(tail(*activations), self.module(image))
        return counter.get_total_flops()


def _cut(steps: Sequence[Step], edges: Sequence[Value]) -> str:
    """Where the edges come from, for a reader."""
    names = [_source(steps, edge) for edge in edges]
    names = ["the backbone" if name == "backbone" else name.removeprefix("backbone.net.") for name in names]
    shown = list(dict.fromkeys(names))
    more = f"{len(shown) - 2} more places, " if len(shown) > 3 else ""
    return f"after {more}{', '.join(shown[-2:] if more else shown)}"


def _source(steps: Sequence[Step], edge: Value) -> str:
    """The last module with parameters that had a part in it."""
    pending = {edge.step}
    while (number := max(pending)) >= 0:
        call = steps[number].call
        if isinstance(call, nn.Module) and next(call.parameters(), None) is not None:
            return steps[number].module
        pending.remove(number)
        pending |= {leaf.step for leaf in steps[number].inputs() if isinstance(leaf, Value)}
    return "the image"


def _check_close(found: Tensor, expected: Tensor, tolerance: float = _TOLERANCE) -> None:
    if found.shape != expected.shape:
        raise ReplayError(f"the parts give {tuple(found.shape)} instead of {tuple(expected.shape)}")
    difference = (found.double() - expected.double()).abs().max()
    if not difference <= tolerance * expected.double().abs().max():
        raise ReplayError(f"the parts differ from the whole by {difference:.1e}")


@contextmanager
def _trial(model: nn.Module, mode: bool) -> Iterator[None]:
    """Within, the model is in train mode or not, and what a forward pass may change is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {torch.device("cpu"), *(buffer.device for _, _, buffer, _ in buffers)}
    generators = [(generator_of(device), generator_of(device).get_state()) for device in devices]
    try:
        for generator, _ in generators:
            generator.manual_seed(0)
        model.train(mode)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, buffer, content in buffers:
            module._buffers[name] = buffer.copy_(content)
        for generator, state in generators:
            generator.set_state(state)
