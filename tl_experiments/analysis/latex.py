"""The table for a paper: LaTeX with booktabs, to be included as it is."""

from __future__ import annotations

from itertools import groupby

from tl_experiments.analysis.columns import caption, explanation, full_columns
from tl_experiments.analysis.results import Comparison
from tl_experiments.safe_text import plain

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "·": r"$\cdot$",
    "—": "---",
    "…": r"\ldots{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}
# A bracket that opens a cell would be read as the optional argument of the \\ before it.
_GUARD = "{}"


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is; letters beyond ASCII need a Unicode engine or their package, and stay."""
    escaped = "".join(_ESCAPED.get(character, character) for character in plain(text))
    return f"{_GUARD}{escaped}" if escaped.startswith(("[", "*")) else escaped


def table_latex(comparison: Comparison) -> str:
    r"""One ``tabular`` a dataset, in a ``table`` with a caption; the recommended arm is bold.

    It needs ``\usepackage{booktabs}``, and ``\usepackage[T1]{fontenc}`` or a Unicode engine.
    """
    parts = []
    for _, group in groupby(comparison.rows, key=lambda row: row.arm.dataset):
        rows = list(group)
        columns = full_columns(rows)
        lines = []
        for row in rows:
            cells = [latex_text(column.cell(row)) for column in columns]
            lines.append([rf"\textbf{{{cell}}}" if row.recommended and cell else cell for cell in cells])
        said = ". ".join([caption(rows), *explanation(rows)])
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(said)}.}}",
            rf"\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in columns)}}}",
            r"\toprule",
            _line([latex_text(column.title) for column in columns]),
            r"\midrule",
            *map(_line, lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def _line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"
