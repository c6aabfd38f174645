"""The documents say what the files say: links lead somewhere, and numbers stand in the table that the tool wrote."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_are_shell(page):
    """Every indented ``tl`` or ``make`` line, with its continuations, is what bash can read."""
    commands = re.findall(r"^    ((?:tl|make|source) .*(?:\\\n.*)*)$", page.read_text(), re.MULTILINE)
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True, text=True)


def _tables(text: str) -> list[list[dict[str, str]]]:
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    cells = [
        [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()] for block in blocks
    ]
    return [[dict(zip(rows[0], row, strict=True)) for row in rows[2:]] for rows in cells]


def _triple(row: dict[str, str], key: str, sign: str) -> str:
    if not row[key]:
        return ""
    mean, low, high = (float(row[key + suffix]) for suffix in ("", "_low", "_high"))
    return f"{mean:{sign}.3f} [{low:.3f}, {high:.3f}]"


@pytest.mark.parametrize("page", ["results.md", "strategies.md"])
def test_the_results_are_those_of_the_files(page):
    columns = ("arm", "val", "test, 95% interval", "gain over from_scratch", "trained")
    tables = [table for table in _tables((ROOT / "docs" / page).read_text()) if set(columns) <= table[0].keys()]
    files = [
        file
        for file in sorted((ROOT / "docs" / "results").glob("*.csv"))
        if file.name.startswith("strategies_") == (page == "strategies.md")
    ]
    assert len(tables) == len(files) >= 2
    written = {
        tuple(
            (
                row["freeze_strategy"],
                f"{float(row['val_accuracy']):.3f}",
                _triple(row, "test_accuracy", ""),
                _triple(row, "transfer_gain", "+"),
                f"{int(float(row['trained_parameters'])):,}",
            )
            for row in csv.DictReader(file.open())
        )
        for file in files
    }
    assert {tuple(tuple(row[column] for column in columns) for row in table) for table in tables} == written


def test_the_rates_are_those_of_the_curves():
    (table,) = (t for t in _tables((ROOT / "docs" / "strategies.md").read_text()) if "rule (AdamW)" in t[0])
    curves = json.loads((ROOT / "docs" / "results" / "lr_rates.json").read_text())
    assert [tuple(row.values()) for row in table] == [
        (one["strategy"], f"{one['rule']:.2g}", f"{one['steepest']:.2g}", f"{one['minimum'] / 10:.2g}")
        for one in curves["suggestions"]
    ]


def test_the_page_of_benchmarks_is_what_the_script_makes_of_the_results():
    spec = importlib.util.spec_from_file_location("benchmark_page", ROOT / "scripts" / "benchmark_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert script.page(results) == (ROOT / "docs" / "benchmarks.md").read_text()


def test_met_is_what_the_figures_of_a_benchmark_say():
    """The page copies ``met`` from the results; nobody may edit it there."""
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(path.read_text()).get("rows", ()):  # kills.json has none
            better = (row["value"] - (row["target"] or 0)) * (1 if row["sense"] == ">=" else -1) >= 0
            assert row["met"] is (None if row["target"] is None else better), (path.name, row["what"])
            assert row["low"] <= row["value"] <= row["high"]


def test_the_tables_of_few_labels_are_those_of_the_files():
    spec = importlib.util.spec_from_file_location("few_labels", ROOT / "scripts" / "few_labels.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "results.md").read_text()
    assert script.BEGIN in page
    assert script.with_section(page, script.section()) == page
