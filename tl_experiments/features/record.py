"""What a model computes, written down module by module while it runs, and run again from what was written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name

# A computation that goes on with such a number is another one for other images.
_READS = {"__array__", "__bool__", "__complex__", "__contains__", "__float__", "__index__", "__int__", "allclose"}
_READS |= {"equal", "item", "numpy", "tolist"}


class ReplayError(Exception):
    """The computation cannot be written down; the text says why."""


@dataclass(frozen=True)
class Value:
    """The tensor at ``position`` in what ``step`` returned; step -1 is the image."""

    step: int
    position: int = 0


@dataclass(frozen=True)
class Attribute:
    """A parameter or a buffer of the model."""

    name: str


@dataclass(frozen=True)
class Size:
    """A number that depends on how many images there are."""

    per_image: int
    constant: int


@dataclass(frozen=True)
class Step:
    """One call.

    Args:
        module: Name of the module that was called, empty where it was a function.
        call: The module or the function.
        args: Of the call; ``Value``, ``Attribute`` and ``Size`` stand for what they name, other tensors for themselves.
        kwargs: Like ``args``.
        random: Whether it drew random numbers.
        reads: Whether it made a tensor into a plain number.
    """

    module: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    random: bool = False
    reads: bool = False

    def inputs(self) -> list[Any]:
        """All single arguments, those in lists and dictionaries too."""
        return leaves((self.args, dict(self.kwargs)))

    @property
    def name(self) -> str:
        """Of the module, or of the function in torch, for example ``torch.Tensor.add``."""
        return self.module or resolve_name(self.call) or getattr(self.call, "__name__", repr(self.call))

    def text(self) -> str:
        """The call as a line, the same in every process."""
        arguments = [_text(value) for value in self.args] + [f"{k}={_text(v)}" for k, v in self.kwargs.items()]
        return f"{self.name}({', '.join(arguments)})"


@dataclass
class Recording:
    """The calls of one forward pass.

    Args:
        steps: In their order.
        output: What the model returned.
        result: Its value.
        tensors: Each tensor that was computed.
    """

    steps: list[Step] = field(default_factory=list)
    output: Value = Value(-1)
    result: Tensor = field(default_factory=lambda: torch.empty(0))
    tensors: dict[Value, Tensor] = field(default_factory=dict)


def record(model: nn.Module, leaf_names: Mapping[nn.Module, str], image: Tensor) -> Recording:
    """Run ``model`` on ``image`` and write down its calls.

    Args:
        model: From images to logits.
        leaf_names: The modules, with their names, that count as one call; what stands outside them counts function
            by function.
        image: uint8 ``(n, channels, size, size)``.

    Raises:
        ReplayError: It goes on with numbers of the image's features, or its logits come from a call unseen.
    """
    recorder = _Recorder(model, leaf_names, image)
    before = register_module_forward_pre_hook(recorder.enter)
    after = register_module_forward_hook(recorder.leave, with_kwargs=True)
    try:
        with recorder:
            result = model(image)
    finally:
        before.remove()
        after.remove()
    output = recorder.value_of.get(id(result))
    if output is None:
        raise ReplayError("the logits come from a call that could not be seen")
    steps = recorder.recording.steps
    if read := [steps[number].name for number in sorted(depend_on(Value(-1), steps) - {-1}) if steps[number].reads]:
        raise ReplayError(f"{read[0]} makes a number of the image's features")
    recorder.recording.output, recorder.recording.result = output, result
    return recorder.recording


def depend_on(start: Value, steps: Sequence[Step]) -> set[int]:
    """Numbers of the steps that ``start`` has a part in, its own too."""
    found = {start.step}
    for number, step in enumerate(steps):
        if any(isinstance(leaf, Value) and leaf.step in found for leaf in step.inputs()):
            found.add(number)
    return found


class _Recorder(TorchFunctionMode):
    """Sees calls of torch's functions as a mode and calls of modules by hooks.

    Inside a leaf nothing is written down, so its code (control flow, dropout, training flags) stays alive.
    """

    def __init__(self, model: nn.Module, leaf_names: Mapping[nn.Module, str], image: Tensor) -> None:
        super().__init__()
        self.recording = Recording()
        self.value_of = {id(image): Value(-1)}
        self._kept: list[Tensor] = [image]  # an id is unique while its tensor lives
        self._names = leaf_names
        self._leaf: nn.Module | None = None
        self._args: tuple[Any, ...] = ()
        self._generator = generator_of(image.device)
        self._before = self._generator.get_state()
        self._attributes = {id(p): Attribute(name) for name, p in (*model.named_parameters(), *model.named_buffers())}

    def enter(self, module: nn.Module, args: Any) -> None:
        if self._leaf is None and module in self._names:
            self._leaf, self._before = module, self._generator.get_state()
            self._args = map_leaves(args, self._named)  # now: the module may put other tensors into a list

    def leave(self, module: nn.Module, _args: Any, kwargs: Any, result: Any) -> None:
        if module is self._leaf:
            self._note(self._names[module], module, self._args, kwargs, result)
            self._leaf = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._leaf is not None:
            return func(*args, **kwargs)
        if func is Tensor.__iter__:
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        self._before = self._generator.get_state()
        result = func(*args, **kwargs)
        if func is Tensor.__setitem__:
            self._note("", set_item, args, kwargs, args[0])
        elif getattr(func, "__name__", "") in _READS:
            self._note("", func, args, kwargs, None, reads=True)
        elif any(isinstance(leaf, Tensor) for leaf in leaves(result)):
            self._note("", func, args, kwargs, result)
        return result

    def _note(self, module: str, call: Any, args: Any, kwargs: Any, result: Any, reads: bool = False) -> None:
        random = not torch.equal(self._before, self._generator.get_state())
        number = len(self.recording.steps)
        args, kwargs = map_leaves(tuple(args), self._named), map_leaves(dict(kwargs), self._named)
        self.recording.steps.append(Step(module, call, args, kwargs, random, reads))
        for position, tensor in enumerate(leaf for leaf in leaves(result) if isinstance(leaf, Tensor)):
            value = Value(number, position)
            self.value_of[id(tensor)] = value
            self.recording.tensors[value] = tensor
            self._kept.append(tensor)

    def _named(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        self._kept.append(argument)
        return self.value_of.get(id(argument)) or self._attributes.get(id(argument), argument)


def set_item(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """``tensor[index] = value`` as a function with a result."""
    tensor[index] = value
    return tensor


def leaves(nested: Any) -> list[Any]:
    """What lists, tuples, dictionaries and slices hold."""
    found: list[Any] = []
    map_leaves(nested, found.append)
    return found


def map_leaves(nested: Any, function: Callable[[Any], Any]) -> Any:
    """The same lists, tuples, dictionaries and slices, each new, of what ``function`` makes of what they hold."""
    if isinstance(nested, tuple):
        items = [map_leaves(item, function) for item in nested]
        return type(nested)(*items) if hasattr(nested, "_fields") else tuple(items)
    if isinstance(nested, list):
        return [map_leaves(item, function) for item in nested]
    if isinstance(nested, dict):
        return {key: map_leaves(item, function) for key, item in nested.items()}
    if isinstance(nested, slice):
        return slice(*(map_leaves(item, function) for item in (nested.start, nested.stop, nested.step)))
    return function(nested)


def generator_of(device: torch.device) -> torch.Generator:
    """The generator that random functions on ``device`` draw from."""
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


def _text(value: Any) -> str:
    match value:
        case Value(step, position):
            return f"%{step}.{position}"
        case Attribute(name):
            return name
        case Size(per_image, constant):
            return f"{per_image}*n+{constant}"
        case Tensor():
            return f"tensor{list(value.shape)}"
        case list() | tuple():
            return f"[{', '.join(map(_text, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
        case slice():
            return f"{_text(value.start)}:{_text(value.stop)}:{_text(value.step)}"
    return str(value)
