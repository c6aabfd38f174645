"""A figure as inline SVG: colours come from the page's style sheet, so that it follows light and dark."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from tl_experiments.analysis.wording import short
from tl_experiments.report.figure import Bar, Cell, Dot, Figure, Line, Mark, Text
from tl_experiments.report.styles import Style

_TOP, _BOTTOM, _LEFT, _RIGHT = 10, 38, 48, 14
_LABEL_CHARACTERS = 38  # of a row's name above its mark, beside a value of some 20
_CHARACTER = 6.3  # pixels, a little more than most are wide
_CELL_LABEL_CHARACTERS = 12
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")
_MARKERS = (
    None,  # a circle
    "M-1 -1H1V1H-1Z",
    "M0 -1.3L1.2 .9H-1.2Z",
    "M0 -1.35L1.35 0L0 1.35L-1.35 0Z",
    "M0 1.3L1.2 -.9H-1.2Z",
    "M-.4 -1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",
)


def draw(figure: Figure) -> Markup:
    """One ``<svg>``; every text is escaped."""
    box = _Box(figure)
    parts = [*_grid(figure, box), *(_mark(mark, box) for mark in figure.marks), *_row_names(figure, box)]
    return Markup('<svg class="figure" viewBox="0 0 {w} {h}" role="img" aria-label="{about}">{body}</svg>').format(
        w=figure.width, h=_n(box.height), about=f"{figure.title}: {figure.about}", body=Markup("").join(parts)
    )


def key(style: Style) -> Markup:
    """The sample of a style in a legend."""
    line = Markup('<line class="line" x1="1" x2="25" y1="7" y2="7"{}/>').format(_dashed(style))
    return Markup('<svg class="key {}" viewBox="0 0 26 14" aria-hidden="true">{}{}</svg>').format(
        _colour(style), line, _marker(13, 7, 4, style)
    )


class _Box:
    """Where the area between the axes lies, in pixels."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        named_columns = figure.x.names
        self.left = 12.0 if figure.y.names and not named_columns else _LEFT + 46.0 if named_columns else float(_LEFT)
        self.right = float(figure.width - _RIGHT)
        self.top = float(_TOP)
        self.bottom = self.top + figure.height
        self.height = self.bottom + (80 if named_columns else _BOTTOM)

    def x(self, value: float) -> float:
        return self.left + self.figure.x.share(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self.figure.y.share(value) * (self.bottom - self.top)


def _grid(figure: Figure, box: _Box) -> Iterator[Markup]:
    x, y = figure.x, figure.y
    for value, text in () if x.names else x.ticks:
        at = _n(box.x(value))
        yield Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(at, _n(box.top), _n(box.bottom))
        yield _text(box.x(value), box.bottom + 15, text, "tick", "middle")
    for value, text in () if y.names else y.ticks:
        at = _n(box.y(value))
        yield Markup('<line class="grid" x1="{1}" x2="{2}" y1="{0}" y2="{0}"/>').format(at, _n(box.left), _n(box.right))
        yield _text(box.left - 6, box.y(value) + 4, text, "tick", "end")
    yield _text((box.left + box.right) / 2, box.height - 4, x.title, "axis", "middle")
    if y.title and not (y.names and not x.names):
        middle = (box.top + box.bottom) / 2
        turned = Markup('<text class="axis" text-anchor="middle" transform="translate(11 {}) rotate(-90)">{}</text>')
        yield turned.format(_n(middle), y.title)


def _row_names(figure: Figure, box: _Box) -> Iterator[Markup]:
    """Names above their rows, so that long ones have room; where columns have names too, beside and below."""
    if not figure.y.names:
        return
    row = abs(box.y(1) - box.y(0))
    for number, (value, text) in enumerate(figure.y.ticks):
        if figure.x.names:
            yield _text(box.left - 6, box.y(value) + 4, short(text, _CELL_LABEL_CHARACTERS), "tick", "end", tip=text)
            continue
        line = box.y(value) - row / 2 + 13
        shown = short(text, _LABEL_CHARACTERS)
        under = Markup('<rect class="under" x="{}" y="{}" width="{}" height="12"/>')  # no axis runs through the name
        yield under.format(_n(box.left), _n(line - 10), _n(_CHARACTER * len(shown)))
        yield _text(box.left, line, shown, "name", tip=text)
        if figure.values:
            yield _text(box.right, line, figure.values[number], "value", "end")
    for value, text in figure.x.ticks if figure.x.names else ():
        at = box.x(value) + 4
        shown = short(text, _CELL_LABEL_CHARACTERS)
        place = Markup(' transform="translate({} {}) rotate(-40)"').format(_n(at), _n(box.bottom + 12))
        yield Markup('<text class="tick" text-anchor="end"{}>{}{}</text>').format(place, _tip(text, shown), shown)


def _mark(mark: Mark, box: _Box) -> Markup:
    match mark:
        case Line():
            path = "M" + "L".join(f"{_n(box.x(x))} {_n(box.y(y))}" for x, y in mark.points)
            look = Markup('<path class="line {}{}" d="{}" stroke-width="{}"{}').format(
                _colour(mark.style), _faint(mark.faint), path, _n(mark.weight), _dashed(mark.style)
            )
            return look + _end("path", mark.tip)
        case Dot():
            kind = f"{_colour(mark.style)}{_faint(mark.faint)}{' hollow' if mark.hollow else ''}"
            marker = _marker(box.x(mark.x), box.y(mark.y), mark.size, mark.style)
            return Markup('<g class="{}">{}{}</g>').format(kind, marker, _tip(mark.tip))
        case Bar():
            left, top = box.x(mark.left) + 0.5, box.y(mark.high)
            look = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"').format(
                _n(left), _n(top), _n(box.x(mark.right) - 0.5 - left), _n(box.bottom - top)
            )
            return look + _end("rect", mark.tip)
        case Cell():
            return _cell(mark, box)
        case Text():
            x = box.x(mark.x) + (-10 if mark.left else 10)
            return _text(x, box.y(mark.y) + 4, mark.text, "note", "end" if mark.left else "start")


def _cell(mark: Cell, box: _Box) -> Markup:
    wide, high = abs(box.x(1) - box.x(0)), abs(box.y(1) - box.y(0))
    left, top = box.x(mark.x) - wide / 2, box.y(mark.y) - high / 2
    text = Markup("")
    if mark.text:
        kind = "count dark" if mark.shade > 0.55 else "count"
        text = _text(box.x(mark.x), box.y(mark.y) + 4, mark.text, kind, "middle")
    return Markup('<g><rect class="cell{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"/>{}{}</g>').format(
        " right" if mark.right else "", _n(left), _n(top), _n(wide), _n(high), f"{mark.shade:.2f}", text, _tip(mark.tip)
    )


def _marker(x: float, y: float, size: float, style: Style) -> Markup:
    path = _MARKERS[style.shape]
    if path is None:
        return Markup('<circle class="dot" cx="{}" cy="{}" r="{}"/>').format(_n(x), _n(y), _n(size))
    return Markup('<path class="dot" transform="translate({} {}) scale({})" d="{}"/>').format(
        _n(x), _n(y), _n(0.9 * size), path
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", tip: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}{}</text>').format(
        kind, _n(x), _n(y), anchor, _tip(tip, text), text
    )


def _tip(tip: str, shown: str = "") -> Markup:
    """A tooltip, where it tells more than what is shown."""
    return Markup("<title>{}</title>").format(tip) if tip and tip != shown else Markup("")


def _end(tag: str, tip: str) -> Markup:
    return Markup(">{}</{}>").format(_tip(tip), Markup(tag)) if tip else Markup("/>")


def _colour(style: Style) -> str:
    return "ink" if style.colour is None else f"c{style.colour}"


def _faint(faint: bool) -> str:
    return " faint" if faint else ""


def _dashed(style: Style) -> Markup:
    dashes = _DASHES[style.shape]
    return Markup(' stroke-dasharray="{}"').format(dashes) if dashes else Markup("")


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
