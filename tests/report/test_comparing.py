"""``tl compare``: what it prints and writes, and what it leaves alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from tl_experiments.analysis import compare
from tl_experiments.commands.comparing import main
from tl_experiments.errors import ConfigError, UserError


@pytest.fixture
def sweep(make_sweep):
    return make_sweep(arms=("full", "from_scratch"))


def test_it_prints_the_verdict_and_where_the_report_is(sweep, capsys):
    assert main([str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert "Verdict" in printed
    assert printed.splitlines()[-1] == f"report: {sweep / 'comparison' / 'report.html'}"
    assert (sweep / "comparison/report.html").read_text().startswith("<!DOCTYPE html>")


def test_nothing_is_made_again_and_nothing_heavy_imported(sweep):
    main([str(sweep)])
    before = (sweep / "comparison/report.html").stat().st_mtime_ns
    heavy = ["torch", "matplotlib", "scipy", "numpy", "pyarrow", "jinja2", "PIL"]
    code = (
        "import sys; from tl_experiments.commands.comparing import main; main([sys.argv[1]]);"
        f"print('heavy:', *sorted({set(heavy)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert (sweep / "comparison/report.html").stat().st_mtime_ns == before


def test_the_first_report_imports_neither_torch_nor_matplotlib(sweep):
    code = (
        "import sys; from tl_experiments.commands.comparing import main; main([sys.argv[1]]);"
        "print('heavy:', *sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_another_record_makes_another_report(sweep):
    main([str(sweep)])
    page = sweep / "comparison/report.html"
    before = page.read_text()
    path = next(sweep.glob("*/record.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notes": ["something else"]}))
    main([str(sweep)])
    assert "something else" in page.read_text()
    assert "something else" not in before


def test_a_damaged_report_is_made_again(sweep):
    main([str(sweep)])
    page = sweep / "comparison/report.html"
    whole = page.read_bytes()
    page.write_bytes(b"\xff\xfe")
    main([str(sweep)])
    assert page.read_bytes() == whole


def test_formats(sweep, capsys):
    printed = {}
    for name in ("csv", "markdown", "latex", "html"):
        assert main([str(sweep), "--format", name]) == 0
        printed[name] = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    assert [float(row["test_accuracy"]) for row in rows] == [row.test_accuracy.mean for row in compare(sweep).rows]
    assert printed["markdown"].startswith("# Comparison")
    assert "\\begin{tabular}" in printed["latex"]
    assert printed["html"] == (sweep / "comparison/report.html").read_text()


def test_html_is_nothing_for_a_terminal(sweep, monkeypatch):
    """Names in it may hold control codes; a file or a pipe takes them as they are."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(
        ConfigError, match=r"--format html: standard output is a terminal -> add > report.html, or open "
    ):
        main([str(sweep), "--format", "html"])
    assert sys.stdout.getvalue() == ""
    assert main([str(sweep), "--format", "markdown"]) == 0


@pytest.mark.parametrize("name", ["csv", "markdown", "latex", "html", None])
def test_a_full_standard_output_is_said_in_one_line(sweep, name):
    """Small and large output: what is written at once, and what waits in a buffer until the end."""
    options = ["--format", name] if name else []
    command = [sys.executable, "-m", "tl_experiments", "compare", str(sweep), *options]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    what = "cannot be written (No space left on device) -> make room, or write it elsewhere"
    assert (done.returncode, done.stderr) == (1, f"error: standard output: {what}\n")


def test_a_closed_standard_output_is_said_in_one_line(sweep):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "tl_experiments", "compare", str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True)
    line = "error: standard output: closed -> redirect it, for example to /dev/null\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_reader_that_has_gone_is_no_error(sweep):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tl_experiments", "compare", str(sweep), "--format", "csv"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_figure_as_png_and_svg(sweep, capsys):
    assert main([str(sweep), "--figures"]) == 0
    folder = sweep / "comparison/figures"
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {path.stem for path in folder.glob("*.svg")}
    assert {"accuracy", "gains", "curves-epochs", "curves-seconds", "confusion", "calibration"} <= names
    assert {"pareto-seconds", "pareto-trained", "pareto-memory"} <= names
    assert capsys.readouterr().err == f"figures: {2 * len(names)} files in {folder}\n"
    for path in folder.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 300
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "of-an-earlier-comparison.png").write_bytes(b"")
    main([str(sweep), "--figures"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_several_sweeps_leave_the_comparison_of_each_alone(make_sweep, capsys):
    first, second = make_sweep(arms=("full",)), make_sweep(arms=("from_scratch",))
    main([str(first)])
    before, own = content(first), compare(first)
    capsys.readouterr()
    assert main([str(first), str(second), "--figures"]) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("report: "))
    assert (page.parent.parent, page.name) == (first.parent / "comparisons", "report.html")
    assert re.fullmatch(rf"{first.name}-{second.name}-[0-9a-f]{{8}}", page.parent.name)
    assert {"table.csv", "report.html", "figures"} <= {path.name for path in page.parent.iterdir()}
    assert content(first) == before
    assert not (second / "comparison").exists()
    assert compare(first) == own
    both = content(page.parent)
    main([str(second), str(first) + "/", str(second)])  # the same set
    assert content(first.parent / "comparisons") == both


def test_an_output_is_where_all_is_written(sweep, tmp_path, capsys):
    assert main([str(sweep), "--output", str(tmp_path / "paper"), "--figures"]) == 0
    assert f"report: {tmp_path / 'paper' / 'report.html'}" in capsys.readouterr().out
    assert {"table.csv", "comparison.json", "figures"} <= {path.name for path in (tmp_path / "paper").iterdir()}
    assert not (sweep / "comparison").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file, expected a folder"):
        main([str(sweep), "--output", str(tmp_path / "file")])
    with pytest.raises(UserError, match=r"compare: got a list, expected paths -> compare\(\*folders\)"):
        compare([sweep])
