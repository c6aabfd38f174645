"""Curves of the learning-rate range test: what they suggest, and their picture."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tl_experiments.analysis.arms import flat_settings
from tl_experiments.analysis.settings import short_names
from tl_experiments.records import LrCurve, write_atomically

_RATES = {"optimizer.lr", "optimizer.lr_factor"}  # the test goes through rates of its own
_SMOOTHING = 0.9
_SKIPPED = 5  # first steps, in which the average is little more than a single loss


@dataclass(frozen=True)
class Suggestion:
    """What the curves of one strategy say, each the median over seeds.

    Args:
        strategy: Label of the arm.
        rule: The rate that the strategy's rule gives; None where it has none for the optimizer.
        steepest: Rate at which the smoothed loss falls fastest over the logarithm of the rate.
        minimum: Rate at which it is lowest; a tenth of it is the customary upper end (Smith, 2017).
    """

    strategy: str
    rule: float | None
    steepest: float
    minimum: float


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Exponential moving average without the bias of its start (Kingma & Ba, 2015, section 3)."""
    averages, average = [], 0.0
    for step, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        averages.append(average / (1 - _SMOOTHING**step))
    return np.array(averages)


def suggest(curves: Sequence[LrCurve]) -> list[Suggestion]:
    """One suggestion a strategy, in the order in which they were tested."""
    found = []
    for strategy, own in by_strategy(curves).items():
        steepest, minimum = zip(*(_points(curve) for curve in own), strict=True)
        found.append(Suggestion(strategy, own[0].rule, float(np.median(steepest)), float(np.median(minimum))))
    return found


def by_strategy(curves: Sequence[LrCurve]) -> dict[str, list[LrCurve]]:
    """Curves by strategy, and by whatever else differs between curves of one strategy, save the seed."""
    facts = [_facts(curve) for curve in curves]
    seen: dict[tuple[str, str], set[str]] = {}
    for curve, own in zip(curves, facts, strict=True):
        for key, value in own.items():
            seen.setdefault((curve.arm["freeze_strategy"], key), set()).add(value)
    differing = sorted({key for (_, key), values in seen.items() if len(values) > 1})
    names = short_names(differing)
    groups: dict[str, list[LrCurve]] = {}
    for curve, own in zip(curves, facts, strict=True):
        others = (f"{names[key]}={own[key]}" for key in differing if key in own)
        groups.setdefault(", ".join([curve.arm["freeze_strategy"], *others]), []).append(curve)
    return groups


def _facts(curve: LrCurve) -> dict[str, str]:
    """What a curve depends on beside its strategy, whose options its label has, and the rates, which the axis has."""
    labels = {key: text for key, text in curve.arm.items() if key != "freeze_strategy"}
    settings = {
        key: value.strip('"')
        for key, value in flat_settings(curve.config).items()
        if key.partition(".")[0] not in (*labels, "freeze_strategy", "lr_range") and key not in _RATES
    }
    return {**labels, **settings, "phase": str(curve.phase)}


def _points(curve: LrCurve) -> tuple[float, float]:
    rates, losses = np.array(curve.learning_rates), smooth(curve.losses)
    if len(rates) <= _SKIPPED + 2:
        return float(rates[0]), float(rates[0])
    lowest = _SKIPPED + int(losses[_SKIPPED:].argmin())
    slope = np.gradient(losses, np.log(rates))[_SKIPPED : max(lowest, _SKIPPED + 1) + 1]
    return float(rates[_SKIPPED + int(slope.argmin())]), float(rates[lowest])


def write_curves(curves: Sequence[LrCurve], folder: Path) -> list[Path]:
    """Write ``lr.json`` with every step of every curve, and ``lr.png``."""
    content = {"curves": [asdict(curve) for curve in curves], "suggestions": [asdict(one) for one in suggest(curves)]}
    data = write_atomically(folder / "lr.json", json.dumps(content, indent=1) + "\n")
    return [data, draw(curves, folder / "lr.png")]


def draw(curves: Sequence[LrCurve], path: Path) -> Path:
    """One panel a strategy: smoothed losses over the rate, a line at the rule and one at the steepest point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups, suggestions = by_strategy(curves), suggest(curves)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for panel, suggestion, own in zip(axes, suggestions, groups.values(), strict=False):
        for curve in own:
            panel.plot(curve.learning_rates, smooth(curve.losses), color="#3567a8", linewidth=1.2, alpha=0.8)
        if suggestion.rule is not None:
            panel.axvline(suggestion.rule, color="#c23b22", linestyle="--", label=f"rule {suggestion.rule:.2g}")
        steepest = f"steepest {suggestion.steepest:.2g}"
        panel.axvline(suggestion.steepest, color="#4a4a4a", linestyle=":", label=steepest)
        first = [smooth(curve.losses) for curve in own]
        low, high = min(map(np.min, first)), max(losses[0] for losses in first)
        panel.set_ylim(low - 0.08 * (high - low + 1e-9), high + 0.35 * (high - low + 1e-9))
        panel.set(xscale="log", ylabel="training loss")
        panel.set_title(_in_lines(suggestion.strategy), fontsize=10, parse_math=False)
        panel.tick_params(labelbottom=True)
        panel.legend(loc="upper left", fontsize=8)
    for panel in axes[len(groups) :]:
        panel.remove()
    optimizers = ", ".join(dict.fromkeys(curve.optimizer for curve in curves))
    figure.supxlabel(f"base learning rate, {optimizers}")
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return write_atomically(path, stream.getvalue())


def _in_lines(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 40))


def table(curves: Sequence[LrCurve]) -> str:
    """Strategy, rule and what the curves suggest, for a terminal."""
    rows = [("strategy", "rule", "steepest", "minimum/10")]
    rows += [
        (one.strategy, "-" if one.rule is None else f"{one.rule:.2g}", f"{one.steepest:.2g}", f"{one.minimum / 10:.2g}")
        for one in suggest(curves)
    ]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells) for name, *cells in rows)
