"""The figures as PNG and SVG files, drawn by matplotlib on white."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_experiments.analysis.compare import Evidence
from tl_experiments.analysis.wording import short
from tl_experiments.records import remove_stale_temporaries, write_atomically
from tl_experiments.report.figure import Axis, Bar, Cell, Dot, Figure, Line, Mark, Text
from tl_experiments.report.sections import all_figures
from tl_experiments.report.styles import PALETTE, Style
from tl_experiments.safe_text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PIXELS_PER_INCH = 75  # of a figure's own measures: 440 pixels are 5.9 inches
_DPI = 200
_INK = "#40464f"
_RIGHT, _WRONG = "#0072b2", "#c2500a"
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 2)), (0, (5, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)))
_NAME = 40


def write_figures(evidence: Evidence, folder: Path) -> list[Path]:
    """Write every figure of the report as PNG and SVG; the same evidence gives the same bytes.

    Args:
        evidence: What is shown.
        folder: Where to; figures that a smaller comparison no longer has are removed.

    Returns:
        The files.
    """
    figures = all_figures(evidence)
    remove_stale_temporaries(folder)
    written = [path for figure in figures for path in write_figure(figure, folder)]
    for path in folder.iterdir():
        if path.suffix in (".png", ".svg") and path not in written:
            path.unlink()
    return written


def write_figure(figure: Figure, folder: Path) -> list[Path]:
    """One figure, as PNG and as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    # names are text, not mathematics; the SVG's ids come from its content, not from chance
    settings: Any = {"text.parse_math": False, "svg.hashsalt": figure.name, "font.size": 9, "axes.unicode_minus": True}
    with mpl.rc_context(settings):
        names = 1.6 if figure.y.names else 0.0
        legend = 0.2 * len(figure.legend)
        size = (figure.width / _PIXELS_PER_INCH + names, (figure.height + 110) / _PIXELS_PER_INCH + legend)
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        _axes(axes, figure)
        for order, mark in enumerate(figure.marks):
            _draw(axes, mark, order + 2)
        if figure.legend:
            handles = [_sample(label, style) for label, style in figure.legend]
            canvas.legend(handles=handles, loc="outside lower left", frameon=False, ncols=1 if names else 2)
        written = []
        for ending, options in (("png", {"dpi": _DPI}), ("svg", {"metadata": {"Date": None}})):
            stream = io.BytesIO()
            canvas.savefig(stream, format=ending, **options)
            written.append(write_atomically(folder / f"{figure.name}.{ending}", stream.getvalue(), sync_folder=False))
    return written


def _axes(axes: Axes, figure: Figure) -> None:
    axes.set_title(figure.title, loc="left", fontsize=10, fontweight="bold")
    for axis, name in ((figure.x, "x"), (figure.y, "y")):
        _axis(axes, axis, name)
    if figure.values:
        beside = axes.twinx()
        beside.set_ylim(figure.y.low, figure.y.high)
        beside.set_yticks(range(len(figure.values)), figure.values)
        beside.tick_params(length=0, colors=_INK)
        beside.spines[:].set_visible(False)
    if not figure.x.names:
        axes.grid(axis="x" if figure.y.names else "both", color="#dfe3e9", linewidth=0.7)
        axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, colors=_INK)


def _axis(axes: Axes, axis: Axis, name: str) -> None:
    getattr(axes, f"set_{name}scale")("log" if axis.log else "linear")
    getattr(axes, f"set_{name}lim")(axis.low, axis.high)
    ticks = [value for value, _ in axis.ticks]
    getattr(axes, f"set_{name}ticks")(ticks, [_text(text) for _, text in axis.ticks], minor=False)
    getattr(axes, f"set_{name}ticks")([], minor=True)
    getattr(axes, f"set_{name}label")(axis.title)
    if axis.names and name == "x":
        axes.tick_params("x", rotation=40)


def _draw(axes: Axes, mark: Mark, order: int) -> None:
    match mark:
        case Line():
            x, y = zip(*mark.points, strict=True)
            axes.plot(
                x, y, color=_colour(mark.style), linestyle=_DASHES[mark.style.shape], linewidth=0.8 * mark.weight,
                alpha=_alpha(mark), zorder=order,
            )  # fmt: skip
        case Dot():
            face = "white" if mark.hollow else _colour(mark.style)
            axes.plot(
                mark.x, mark.y, _MARKERS[mark.style.shape], markersize=1.5 * mark.size, markerfacecolor=face,
                markeredgecolor=_colour(mark.style), alpha=_alpha(mark), zorder=order,
            )  # fmt: skip
        case Bar():
            axes.bar(mark.left, mark.high, mark.right - mark.left, align="edge", color="#dcdfe4", edgecolor="white")
        case Cell():
            colour = _RIGHT if mark.right else _WRONG
            axes.fill_between([mark.x - 0.5, mark.x + 0.5], mark.y - 0.5, mark.y + 0.5, color=colour, alpha=mark.shade,
                              linewidth=0)  # fmt: skip
            axes.text(mark.x, mark.y, mark.text, ha="center", va="center", color="white" if mark.shade > 0.55 else _INK)
        case Text():
            axes.annotate(
                mark.text, (mark.x, mark.y), xytext=(-7 if mark.left else 7, 0), textcoords="offset points",
                ha="right" if mark.left else "left", va="center", fontstyle="italic", fontsize=8,
            )  # fmt: skip


def _sample(label: str, style: Style) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=_colour(style), linestyle=_DASHES[style.shape], marker=_MARKERS[style.shape], markersize=5,
        label=_text(label),
    )  # fmt: skip


def _colour(style: Style) -> str:
    return _INK if style.colour is None else PALETTE[style.colour][0]


def _alpha(mark: Line | Dot) -> float:
    return 0.45 if mark.faint else 1.0


def _text(text: str) -> str:
    """In two lines where one is not enough; a leading underscore would hide it from a legend."""
    found = "\n".join(textwrap.wrap(short(plain(text), 2 * _NAME), _NAME)) or " "
    return f"\u200b{found}" if found.startswith("_") else found
