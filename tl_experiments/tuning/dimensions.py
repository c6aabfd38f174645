"""What is searched: dimensions, read from Hydra's sweep syntax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from tl_experiments.errors import ConfigError
from tl_experiments.sweeps.expand import values

_DIGITS = 6  # of a float: a setting that is typed again is the same job


class Suggester(Protocol):
    """Optuna's trial, or its fixed one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """A whole number in [low, high]."""

    def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> Any:
        """One of several texts."""


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; whole ones where both are.

    Args:
        key: Of the config.
        low: Smallest.
        high: Largest.
        step: Between two of them; None for all numbers between.
        log: Whether they are drawn evenly over their logarithm.
    """

    key: str
    low: float
    high: float
    step: float | None
    log: bool

    @property
    def ends(self) -> tuple[str, str]:
        """Overrides with the smallest and the largest value."""
        return f"{self.key}={self.low}", f"{self.key}={self.high}"

    def suggest(self, trial: Suggester) -> str:
        """The trial's value, as an override."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return f"{self.key}={trial.suggest_int(self.key, self.low, self.high, step=step, log=self.log)}"
        number = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return f"{self.key}={min(max(float(f'{number:.{_DIGITS}g}'), self.low), self.high)}"

    def point(self, value: Any) -> float | None:
        """The config's own value as one of the dimension; None where it is none."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if abs(steps - round(steps)) > 1e-9 or (whole and value != int(value)):
            return None
        return int(value) if whole else float(value)


@dataclass(frozen=True)
class Choices:
    """Some values, without an order.

    Args:
        key: Of the config.
        overrides: One a value.
    """

    key: str
    overrides: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All overrides."""
        return self.overrides

    def suggest(self, trial: Suggester) -> str:
        """The trial's value, as an override."""
        return str(trial.suggest_categorical(self.key, self.overrides))

    def point(self, value: Any) -> str | None:
        """The config's own value as one of the dimension; None where it is none."""
        text = f"{self.key}={'null' if value is None else value}"
        return next((override for override in self.overrides if override.lower() == text.lower()), None)


Dimension = Interval | Choices


def dimension(override: Override) -> Dimension | None:
    """How ``override`` is searched; None where it has one value.

    Raises:
        ConfigError: It has no values, or none that fit ``tag(log, ...)``.
    """
    key, sweep = override.get_key_element(), override.value()
    if isinstance(sweep, ChoiceSweep) or not override.is_sweep_override():
        overrides = tuple(dict.fromkeys(values(override)))
        return Choices(key, overrides) if len(overrides) > 1 else None
    assert isinstance(sweep, IntervalSweep | RangeSweep)
    log = "log" in sweep.tags
    if isinstance(sweep, RangeSweep):
        numbers = list(sweep.range())
        low, high, step = (min(numbers), max(numbers), abs(sweep.step)) if numbers else (0, 0, sweep.step)
        if log and step != 1:
            raise ConfigError(key, "a range with steps on a logarithmic scale", f"tag(log,int(interval({low},{high})))")
    else:
        assert sweep.start is not None
        assert sweep.end is not None
        low, high, step = sweep.start, sweep.end, None
    if not low < high:
        raise ConfigError(key, f"from {low:g} to {high:g}, expected a smaller number first", "interval(0.1,10)")
    if log and low <= 0:
        raise ConfigError(key, f"from {low:g} on a logarithmic scale", "begin above 0, or leave out tag(log, ...)")
    return Interval(key, low, high, step, log)
