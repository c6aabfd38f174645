"""Figures as data: axes, colours, and where marks end up."""

from __future__ import annotations

import re

import pytest

from tl_experiments.analysis import evidence
from tl_experiments.analysis.arms import Arm
from tl_experiments.report.figure import Dot, Figure, Line, linear, logarithmic, names
from tl_experiments.report.sections import all_figures, groups
from tl_experiments.report.styles import PALETTE, SHAPES, Style, styles
from tl_experiments.report.svg import draw


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 1.0], ["0", "0.25", "0.50", "0.75", "1.00"]),
        ([0.91, 0.94], ["0.910", "0.915", "0.920", "0.925", "0.930", "0.935", "0.940"]),
        ([0.0, 10.0], ["0", "2.5", "5.0", "7.5", "10.0"]),
        ([0.0, 5e6], ["0", "1M", "2M", "3M", "4M", "5M"]),
    ],
)
def test_ticks_are_round_numbers(values, texts):
    axis = linear("x", values)
    assert [text for _, text in axis.ticks] == texts
    assert axis.low < min(values) <= max(values) < axis.high


def test_ticks_with_signs():
    axis = linear("x", [-0.1, 0.2], sign=True)
    assert [text for _, text in axis.ticks] == ["\N{MINUS SIGN}0.10", "\N{MINUS SIGN}0.05", "0", *(
        f"+0.{digits}" for digits in ("05", "10", "15", "20"))]  # fmt: skip


@pytest.mark.parametrize("values", [[0.5], [0.0], [1.0, 1.0], [1e-9, 1e9], [5130.0, 4.9e6]])
def test_any_values_have_an_axis(values):
    axes = [linear("x", values)] + ([logarithmic("x", values, str)] if min(values) > 0 else [])
    for axis in axes:
        assert axis.ticks
        assert all(0 <= axis.share(value) <= 1 for value in values)
        assert all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick, _ in axis.ticks)


def arm(strategy, dataset="digits", backbone="resnet10t"):
    return Arm(dataset, backbone, "linear", strategy)


def test_a_strategy_has_one_colour_everywhere():
    few = styles([arm("full"), arm("from_scratch")])
    many = styles(
        [arm(name, data) for name in ("full", "lp_ft", "mine", "from_scratch") for data in ("digits", "other")]
    )
    assert few[arm("full")].colour == many[arm("full")].colour == many[arm("full", "other")].colour
    assert few[arm("from_scratch")].colour == 0  # grey, for nothing else
    assert len({many[arm(name)].colour for name in ("full", "lp_ft", "mine", "from_scratch")}) == 4


def test_arms_of_one_strategy_differ_in_shape():
    found = styles([arm(f"last_n_blocks(n={n})") for n in range(SHAPES)])
    assert len({style.shape for style in found.values()}) == SHAPES
    assert len({style.colour for style in found.values()}) == 1


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear_light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear_light[0] + 0.7152 * linear_light[1] + 0.0722 * linear_light[2]


def test_colours_stand_out_on_white_and_on_dark():
    for on_white, on_dark in PALETTE:  # WCAG 2.2, 1.4.11: 3 to 1 for what carries meaning
        assert 1.05 / (luminance(on_white) + 0.05) >= 3
        assert (luminance(on_dark) + 0.05) / (luminance("#14171c") + 0.05) >= 3


def test_a_mark_stands_where_its_numbers_say():
    axis = linear("", [0.0, 1.0], within=(0, 1))
    figure = Figure(
        name="x", title="T", about="A", x=axis, y=axis,
        marks=(Dot(0.0, 0.0, Style(1), "origin"), Line(((0.0, 0.0), (1.0, 1.0)), Style(2))), height=200,
    )  # fmt: skip
    svg = draw(figure)
    assert '<circle class="dot" cx="48" cy="210" r="4.5"/><title>origin</title>' in svg
    assert 'd="M48 210L426 10"' in svg


def test_texts_in_a_figure_are_escaped():
    row = '<img src=x onerror="1">'
    figure = Figure(
        name="x", title="<b>", about="</svg>", x=linear("x", [0.0, 1.0]), y=names([row]),
        marks=(Dot(0.0, 0.0, Style(1), "<script>"),), legend=(("<i>", Style(1)),), values=("&",),
    )  # fmt: skip
    svg = draw(figure)
    assert not re.search("<(img|b|script|i)[> ]", svg)
    assert svg.count("</svg>") == 1


def test_the_front_is_that_of_the_comparison(make_sweep):
    found = evidence(make_sweep())
    (group,) = groups(found)
    figure = next(figure for figure in all_figures(found) if figure.name == "pareto-seconds")
    filled = {(mark.x, mark.y) for mark in figure.marks if isinstance(mark, Dot) and not mark.hollow}
    rows = [row for row in group.rows if "seconds" in row.not_dominated]
    assert filled == {(row.wall_clock_s, row.test_accuracy.mean) for row in rows}


def test_names_of_files_are_safe_and_differ(make_sweep):
    names_ = [figure.name for figure in all_figures(evidence(make_sweep(dataset="../x/\x1b[31m"), make_sweep()))]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names_)
    assert len(set(names_)) == len(names_)
