"""Put the tables of the comparison over five datasets into docs/results.md, from the files that ``tl compare`` wrote.

    python scripts/few_labels.py

The commands that wrote the files stand on the page.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
FOLDER = PAGE.parent / "results" / "few_labels"
BEGIN, END = "<!-- few labels: by scripts/few_labels.py -->\n", "<!-- end of few labels -->\n"
_ALL_PAIRS = "wilcoxon_p_holm_all_pairs"

Row = dict[str, str]


def rows_of(name: str) -> list[Row]:
    """The rows of a table."""
    with (FOLDER / name).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def section() -> str:
    """The tables as Markdown."""
    parts = []
    for name, title in (("5", "5 labels a class"), ("20", "20 labels a class")):
        table, ranks = rows_of(f"table_{name}.csv"), rows_of(f"datasets_{name}.csv")
        arms = [row["freeze_strategy"] for row in ranks]
        datasets = list(dict.fromkeys(row["dataset"] for row in table))
        standing = {row["freeze_strategy"]: row for row in ranks}
        friedman = ranks[0]
        parts += [
            f"### {title}",
            "Test accuracy over 3 seeds with half of its 95% t interval. **Bold**: the arm that val chose; *worse* or "
            "*better*: than that one, by the primary test (p < 0.05).",
            _grid(table, arms, datasets, lambda row, table=table: _accuracy(row, table)),  # type: ignore[misc]
            "Transfer gain over `from_scratch`, paired by seed, with half of its interval; NEGATIVE where all of it is "
            "below 0 and p < 0.05, corrected over the arms.",
            _grid(table, [arm for arm in arms if arm != "from_scratch"], datasets, _gain),
            "Over the five datasets:",
            _table(
                ["arm", "average rank", "interquartile mean, 95% interval", "p against the first, Holm over all pairs"],
                [
                    [
                        arm,
                        f"{float(row['average_rank']):.2f}",
                        f"{float(row['interquartile_mean']):.3f}{_interval(row, 'interquartile_mean')}",
                        f"{float(row[_ALL_PAIRS]):.2f}" if row[_ALL_PAIRS] else "",
                    ]
                    for arm, row in standing.items()
                ],
            ),
            f"Friedman's test: chi-square {float(friedman['friedman_chi_square']):.1f}, "
            f"p = {float(friedman['friedman_p']):.4f}; critical difference of ranks (Nemenyi) "
            f"{float(friedman['critical_difference']):.2f}.",
        ]
    probe = [
        [
            row["dataset"],
            row["head"],
            "" if row["head"] == "logistic" else row["settings"],  # which has no rate
            f"{float(row['test_accuracy']):.3f}{_interval(row, 'test_accuracy')}",
        ]
        for row in rows_of("probe_224.csv")
    ]
    parts += ["### Probes at 224 px, all labels", _table(["dataset", "head", "chosen", "test"], probe)]
    return "\n\n".join(parts) + "\n"


def _grid(table: Sequence[Row], arms: Sequence[str], datasets: Sequence[str], cell: Callable[[Row], str]) -> str:
    by = {(row["freeze_strategy"], row["dataset"]): row for row in table}
    names = [dataset.partition(",")[0] for dataset in datasets]
    return _table(["arm", *names], [[arm, *(cell(by[arm, dataset]) for dataset in datasets)] for arm in arms])


def _accuracy(row: Row, table: Sequence[Row]) -> str:
    text = f"{float(row['test_accuracy']):.3f}{_margin(row, 'test_accuracy')}"
    if row["recommended"] == "true":
        return f"**{text}**"
    if not row["p_value"] or float(row["p_value"]) >= 0.05:
        return text
    (chosen,) = [one for one in table if one["dataset"] == row["dataset"] and one["recommended"] == "true"]
    worse = float(row["test_accuracy"]) < float(chosen["test_accuracy"])
    return f"{text} *{'worse' if worse else 'better'}*"


def _gain(row: Row) -> str:
    text = f"{float(row['transfer_gain']):+.3f}{_margin(row, 'transfer_gain')}"
    return f"{text} NEGATIVE" if row["negative_transfer"] == "true" else text


def _margin(row: Row, key: str) -> str:
    if not row[f"{key}_low"]:
        return ""
    return f" ±{(float(row[f'{key}_high']) - float(row[f'{key}_low'])) / 2:.3f}"


def _interval(row: Row, key: str) -> str:
    if not row[f"{key}_low"]:
        return ""
    return f" [{max(0.0, float(row[f'{key}_low'])):.3f}, {min(1.0, float(row[f'{key}_high'])):.3f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_section(page: str, text: str) -> str:
    """The page with what stands between the marks replaced."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{text}\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), section()), encoding="utf-8")
