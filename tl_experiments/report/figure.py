"""A figure as data, which ``svg.py`` draws into the page and ``files.py`` into PNG and SVG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tl_experiments.analysis.wording import count
from tl_experiments.report.styles import Style

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        title: What it shows, with the unit.
        low: Value at its start.
        high: Value at its end; greater than ``low``.
        ticks: Values with their texts.
        log: Whether it is logarithmic; ``low`` is then greater than 0.
        names: Whether the ticks are names, one a row, instead of numbers.
    """

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    names: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between start (0) and end (1)."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """Straight lines from point to point.

    Args:
        points: ``(x, y)`` each.
        style: Colour and dashes.
        tip: What a pointer that rests on it is told.
        weight: Width in pixels.
        faint: Whether it stands in the background.
    """

    points: tuple[tuple[float, float], ...]
    style: Style
    tip: str = ""
    weight: float = 1.6
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A marker; ``size`` is its radius in pixels, ``hollow`` draws its edge only."""

    x: float
    y: float
    style: Style
    tip: str = ""
    size: float = 4.5
    faint: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Cell:
    """A square of side 1 around a point; ``shade`` in [0, 1] says how dark, ``right`` in which of two colours."""

    x: float
    y: float
    shade: float
    text: str
    tip: str
    right: bool = False


@dataclass(frozen=True)
class Bar:
    """A column from 0 up to ``high``."""

    left: float
    right: float
    high: float
    tip: str


@dataclass(frozen=True)
class Text:
    """A label a little to the right of a point, or to the ``left``."""

    x: float
    y: float
    text: str
    left: bool = False


Mark = Line | Dot | Cell | Bar | Text


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is drawn.

    Args:
        name: Of its files, without ending: letters, digits, ``-`` and ``_``.
        title: Heading.
        about: What it shows, in one sentence: the caption, and the text in its place.
        x: The horizontal axis.
        y: The vertical axis.
        marks: From back to front.
        legend: Names with their styles; empty where the marks are named otherwise.
        values: Of an axis of names, a text at the end of each row.
        width: Of the whole, in pixels.
        height: Of the area between the axes, in pixels.
    """

    name: str
    title: str
    about: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    legend: tuple[tuple[str, Style], ...] = ()
    values: tuple[str, ...] = ()
    width: int = 440
    height: int = 220


def linear(title: str, values: Sequence[float], *, within: Sequence[float] = (), sign: bool = False) -> Axis:
    """An axis around ``values`` with a little air, that ends at the bounds of ``within`` at the latest.

    Args:
        title: Of the axis.
        values: Shown values; none must be infinite.
        within: Least and greatest end.
        sign: Write ``+0.1``.
    """
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - air, high + air
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    step = _step(high - low)
    first = math.ceil(low / step - 1e-9)
    ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(title, low, high, tuple((tick, _tick(tick, step, sign)) for tick in ticks))


def logarithmic(title: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """A logarithmic axis around positive ``values``; a linear one where they lie within a factor of 4."""
    low, high = min(values), max(values)
    if high < 4 * low:
        return linear(title, [0.0, *values], within=(0, math.inf))
    low, high = low / 1.4, high * 1.4
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 3)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return Axis(title, low, high, tuple((tick, text(tick)) for tick in ticks if low <= tick <= high), log=True)


def names(texts: Sequence[str], title: str = "", *, upwards: bool = False) -> Axis:
    """An axis with a place for each name: from the top down, as rows are read, or ``upwards``, as columns are."""
    ends = (-0.5, len(texts) - 0.5) if upwards else (len(texts) - 0.5, -0.5)
    return Axis(title, *ends, tuple((float(place), text) for place, text in enumerate(texts)), names=True)


def _tick(value: float, step: float, sign: bool) -> str:
    """As many decimals as the distance of the ticks needs; large numbers as ``1M``."""
    if abs(value) < step / 2:
        return "0"
    if step >= 1000:
        return count(value).replace(".0", "")
    power = math.floor(math.log10(step) + 1e-9)
    quarters = abs(step / 10.0**power - 2.5) < 1e-6
    text = f"{value:{'+' if sign else ''}.{max(0, quarters - power)}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _step(width: float) -> float:
    """A round distance, 4 to 8 of which fill ``width``."""
    magnitude = 10.0 ** math.floor(math.log10(width / 4))
    return next(step * magnitude for step in reversed(_STEPS) if step * magnitude <= width / 4 * 1.0000001)
