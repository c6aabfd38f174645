"""Plain values to frozen dataclasses: every key, type and range is right, or one line says what to do."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

from tl_experiments.errors import ConfigError

T = TypeVar("T")
MISSING = "???"
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known words, as the fix of an error."""
    names = sorted(set(known))
    leaf = word.rpartition(".")[2]
    same_leaf = [name for name in names if name.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    closeness = {name: difflib.SequenceMatcher(None, word, name).ratio() for name in near}
    near = [name for name in near if closeness[name] > closeness[near[0]] - 0.05]
    within = [name for name in names if len(leaf) > 2 and leaf in name.rpartition(".")[2]]
    found = same_leaf or near or within
    if found:
        return f"did you mean {' or '.join(found[:3])}?"
    return f"choose one of {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def typed(cls: type[T], value: Any, path: str = "") -> T:
    """Build the dataclass ``cls`` from nested plain values.

    Raises:
        ConfigError: Unknown or missing key, wrong type, unknown choice, or a value out of its range.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(path, f"got {value!r}, expected keys and values", "choose a file of that group")
    hints = _hints(typing.cast(Any, cls))
    for key in value:
        if key not in hints:
            known = [_join(path, name) for name in hints]
            raise ConfigError(_join(path, str(key)), "unknown key", did_you_mean(_join(path, str(key)), known))
    for key in hints:
        if key not in value or value[key] == MISSING:
            raise ConfigError(_join(path, key), "no value given", f"add {_join(path, key)}=...")
    fields = {key: _convert(hints[key], value[key], _join(path, key)) for key in hints}
    try:
        return cls(**fields)
    except ConfigError as error:
        raise ConfigError(_join(path, error.thing), error.what, error.fix) from None


def keys(cls: type, path: str = "") -> set[str]:
    """Every dotted key of a config class, over all choices of all groups."""
    found = set()
    for key, hint in _hints(cls).items():
        found.add(_join(path, key))
        for choice in _members(hint):
            if dataclasses.is_dataclass(choice):
                found |= keys(typing.cast(type, choice), _join(path, key))
    return found


def members(cls: type, group: str) -> dict[str, type]:
    """The choices of a group that has several, by name."""
    choices = [choice for choice in _members(_hints(cls).get(group)) if dataclasses.is_dataclass(choice)]
    return _by_name(choices) if len(choices) > 1 else {}


def _by_name(choices: list[Any]) -> dict[str, Any]:
    return {name: choice for choice in choices for name in typing.get_args(_hints(choice)["name"])}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _convert(hint: Any, value: Any, path: str) -> Any:
    members = _members(hint)
    if value is None and type(None) in members:
        return None
    choices = [member for member in members if dataclasses.is_dataclass(member)]
    if choices:
        return typed(typing.cast(type, _choice(choices, value, path)), value, path)
    expected = " or ".join("null" if member is type(None) else _describe(member) for member in members)
    for member in members:
        converted = _leaf(member, value, path)
        if converted is not _NO:
            return converted
    if typing.get_origin(members[0]) is Literal and isinstance(value, str):
        raise ConfigError(path, f"got {value!r}, expected {expected}", did_you_mean(value, typing.get_args(members[0])))
    raise ConfigError(path, f"got {value!r}, expected {expected}", "give a value of that type")


def _choice(choices: list[Any], value: Any, path: str) -> Any:
    """The dataclass whose ``name`` the value carries; a group with one free name has a single class."""
    if len(choices) == 1:
        return choices[0]
    by_name = _by_name(choices)
    name = value.get("name") if isinstance(value, Mapping) else value
    if name not in by_name:
        raise ConfigError(path, f"unknown choice {name!r}", did_you_mean(str(name), by_name))
    return by_name[name]


_NO = object()


def _leaf(hint: Any, value: Any, path: str) -> Any:
    """The value as ``hint`` has it, or ``_NO``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _NO
    if origin is tuple:
        ok = isinstance(value, (list, tuple))
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)) if ok else _NO
    if origin is not None and issubclass(origin, Mapping):
        ok = isinstance(value, Mapping)
        return (
            {str(key): _convert(arguments[1], item, _join(path, str(key))) for key, item in value.items()}
            if ok
            else _NO
        )
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if value == value and abs(value) != float("inf") else _NO
    if hint is float and isinstance(value, str):
        return _number(value)
    if hint is str and type(value) in (int, float):
        return str(value)  # a folder may be called 2024
    return value if type(value) is hint else _NO


def _number(text: str) -> Any:
    """YAML reads ``1e-3`` (no point) as text; a number all the same."""
    try:
        number = float(text)
    except ValueError:
        return _NO
    return number if abs(number) < float("inf") else _NO


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a list"
    return _EXPECTED.get(hint, "keys and values")
