"""``tl predict``: a row an input, whatever the input is, and files that others can read."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tl_experiments import load_model, load_run, run
from tl_experiments.cli import main
from tl_experiments.data.transforms import Geometry, eval_transform
from tl_experiments.errors import ConfigError, DataError
from tl_experiments.inference.inputs import list_inputs
from tl_experiments.inference.table import prediction_table, terminal_text, write_table


@pytest.fixture
def tl(capfd, monkeypatch, tmp_path):
    """Run a command in this process, in an empty folder; returns exit code, stdout and stderr."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def by_hand(folder, paths):
    """Probabilities of the run's model, one image at a time."""
    model = load_run(folder)
    spec = model.backbone.input_spec
    geometry = Geometry(spec.image_size, spec.interpolation, spec.crop_fraction)
    with torch.no_grad():
        images = (eval_transform(Image.open(path).convert("RGB"), geometry)[None] for path in paths)
        return torch.cat([model(image) for image in images]).double().softmax(1).numpy()


def test_a_thousand_images_with_three_broken_ones(tl, finished, pictures, tmp_path):
    paths = pictures(1000)
    truncated, empty, text = paths[0], paths[501], paths[998]
    truncated.write_bytes(truncated.read_bytes()[:400])
    empty.write_bytes(b"")
    text.write_text("no image")
    code, out, err = tl("predict", finished("full"), tmp_path / "pictures", "--device", "cpu", "--batch-size", "48")
    assert code == 1
    assert out == "predictions.csv: 1000 rows\n"
    assert err.splitlines()[-1].startswith(f"error: images: 3 of 1000 could not be read, first {truncated}: cannot be")
    rows = list(csv.DictReader((tmp_path / "cwd" / "predictions.csv").open()))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert errors.keys() == {str(truncated), str(empty), str(text)}
    assert "0 bytes" in errors[str(empty)]
    assert all(row["prediction"] == row["probability"] == "" for row in rows if row["error"])
    some = [number for number in range(1, 1000, 37) if not rows[number]["error"]]
    expected = by_hand(finished("full"), [paths[number] for number in some])
    assert [rows[number]["prediction"] for number in some] == [str(label) for label in expected.argmax(1)]
    np.testing.assert_allclose([float(rows[number]["probability"]) for number in some], expected.max(1), atol=2e-6)
    code, out, _ = tl("predict", finished("full"), tmp_path / "pictures", "--device", "cpu")
    assert (code, out) == (1, "predictions.csv: 1000 rows, in place of an older file\n")


def test_top_k_and_probabilities_in_parquet_are_exact(tl, finished, pictures, tmp_path):
    paths = pictures(5)
    paths[2].write_bytes(b"")
    arguments = ["--top-k", 3, "--probabilities", "--output", tmp_path / "out.parquet", "--device", "cpu"]
    code, _, _ = tl("predict", finished("vit"), *reversed(paths), *arguments)
    assert code == 1
    table = pq.read_table(tmp_path / "out.parquet")
    names = [name for k in ("", "_2", "_3") for name in (f"prediction{k}", f"probability{k}")]
    assert table.column_names == ["path", *names, *(f"p({label})" for label in range(10)), "error"]
    assert table["path"].to_pylist() == [str(path) for path in reversed(paths)]
    assert [error is not None for error in table["error"].to_pylist()] == [False, False, True, False, False]
    assert table["p(4)"].to_pylist()[2] is table["prediction"].to_pylist()[2] is None
    kept = [0, 1, 3, 4]
    everything = np.array([table[f"p({label})"].to_pylist() for label in range(10)]).T[kept].astype(float)
    np.testing.assert_allclose(everything, by_hand(finished("vit"), [paths[4 - n] for n in kept]), atol=1e-6)
    assert np.array_equal(np.array(table["probability_3"].to_pylist())[kept], np.sort(everything, 1)[:, -3])


def test_a_few_are_shown_and_nothing_is_written(tl, finished, pictures, tmp_path):
    first, second = pictures(2)
    code, out, err = tl("predict", finished("full"), second, first, "--device", "cpu")
    assert (code, err) == (0, "")
    labels = by_hand(finished("full"), [second, first]).argmax(1)
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["path", "prediction"], [str(second), str(labels[0])], [str(first), str(labels[1])],
    ]  # fmt: skip
    assert not list((tmp_path / "cwd").iterdir())


def test_a_csv_names_files_beside_itself(tl, finished, pictures, tmp_path):
    """As spreadsheets save it: a mark at the start, CRLF, quotes; twice the same file, and one that is not there."""
    pictures(2)
    listing = tmp_path / "list.csv"
    names = ["pictures/0001.png", "pictures/none.png", "pictures/0000.jpg", "pictures/0001.png"]
    listing.write_bytes("\r\n".join(["\ufeffid,path", *(f'{n},"{name}"' for n, name in enumerate(names))]).encode())
    code, _, err = tl("predict", finished("linear"), listing, "--output", "out.csv", "--device", "cpu")
    assert code == 1
    assert "1 of 4 could not be read, first pictures/none.png: cannot be decoded (No such file" in err
    rows = list(csv.DictReader((tmp_path / "cwd" / "out.csv").open()))
    assert [row["path"] for row in rows] == names
    assert rows[0] == rows[3]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["list.csv", "list.TSV"])
def test_a_table_is_read_as_those_that_one_trains_on(tmp_path, delimiter, name):
    table = tmp_path / name
    rows = [["\ufeffid", " file ", "label"], ["1", "a/1.png", "x"], ["2", str(tmp_path / "2.png"), "y"], []]
    table.write_text("\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    beside, absolute = list_inputs([table], path_column="file")
    assert (beside.name, beside.path) == ("a/1.png", tmp_path / "a/1.png")
    assert absolute.path == tmp_path / "2.png"
    (tmp_path / "root").mkdir()
    below, absolute = list_inputs([table], tmp_path / "root", "file")
    assert (below.name, below.path) == ("a/1.png", tmp_path / "root/a/1.png")
    assert absolute.path == tmp_path / "2.png"


def test_a_row_without_a_path_costs_only_itself(tmp_path):
    (tmp_path / "list.csv").write_text("id,path\n1\n2,b.png\n")
    assert [one.name for one in list_inputs([tmp_path / "list.csv"])] == ["", "b.png"]


def test_a_table_of_another_root_on_the_command_line(tl, finished, pictures, tmp_path):
    pictures(2)
    (tmp_path / "list.tsv").write_text("file\tlabel\n0000.jpg\t1\n0001.png\t2\n")
    options = ["--root", tmp_path / "pictures", "--path-column", "file", "--device", "cpu"]
    code, out, err = tl("predict", finished("linear"), tmp_path / "list.tsv", *options)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["path", "0000.jpg", "0001.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": Path()}, "--root: no table among the inputs -> "),
        ({"path_column": "file"}, "--path-column: no table among the inputs -> "),
    ],
)
def test_options_of_tables_without_a_table(pictures, options, message):
    with pytest.raises(ConfigError, match=message):
        list_inputs(pictures(1), **options)


def test_a_root_that_is_not_there(tmp_path):
    (tmp_path / "list.csv").write_text("path\na.png\n")
    with pytest.raises(ConfigError, match=r"--root: no folder .*none -> "):
        list_inputs([tmp_path / "list.csv"], tmp_path / "none")


def test_images_larger_than_the_run_allowed_are_refused(tl, tiny, pictures, tmp_path):
    run(tiny("dataset.max_pixels=1500"), tmp_path / "run")
    large, _, small = pictures(3)  # 40 x 60, 64 x 30 and 33 x 33
    code, _, err = tl("predict", tmp_path / "run", large, small, "--device", "cpu")
    assert code == 1
    assert f"1 of 2 could not be read, first {large}: 2,400 pixels, dataset.max_pixels is 1,500 -> " in err
    assert tl("export", tmp_path / "run", "--format", "safetensors")[0] == 0
    assert load_model(tmp_path / "run" / "export").max_pixels == 1500


def test_folders_are_searched_and_hidden_things_are_not(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "b/deep/x.npy", "a.webp", ".hidden/1.png", "b/.2.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "b" / "again").symlink_to(tmp_path / "in")
    found = [os.path.relpath(one.name, tmp_path / "in") for one in list_inputs([tmp_path / "in"])]
    assert found == ["a.webp", "b/10.JPG", "b/2.png", "b/deep/x.npy"]
    (single,) = list_inputs([tmp_path / "in" / "notes.txt"])  # named by hand: whatever it is called
    assert single.path == tmp_path / "in" / "notes.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list.csv: empty, expected a row with the names of the columns -> "),
        (b"file,label\nx.png,1\n", r"no column 'path', it has 'file', 'label' -> give --path-column: "),
        (b"path\n", r"no row below its header"),
        (b"path\n\xff\xfe\xfa.png\n", r"list.csv row 2: byte 0xff is not UTF-8 -> save the table as UTF-8"),
        (None, r"no such file or folder"),
        ("folder", r"no image in it or below it"),
    ],
)
def test_inputs_that_cannot_be(tmp_path, content, message):
    path = tmp_path / "list.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_inputs([path])


def test_files_of_a_folder_that_are_no_images_are_counted(tmp_path, capsys):
    for name in ("a.heic", "b.HEIC", "c.pgm", "d.csv"):
        (tmp_path / name).touch()
    (only,) = list_inputs([tmp_path])
    assert only.path.name == "c.pgm"
    assert capsys.readouterr().err == f"note: {tmp_path}: 2 files passed over (2 .heic): the ending is no image's\n"


HOSTILE = [
    "=cmd|' /C calc'!A0.png",
    "@x.png",
    "[red]\x1b[31m.png",
    'a,b\n"c".png',
    "-1\u202egpj.png",
    os.fsdecode(b"\xe9.png"),
]


def test_hostile_names_of_files_and_classes(tmp_path):
    """No formula for a spreadsheet, no steering of a terminal; parquet keeps the names."""
    classes = ["=1+1", "+2", "\x1b[2Jcat", 'dog, "the"\none', "<script>", "@home"]
    table = prediction_table(HOSTILE, np.eye(6) * 0.9 + 0.02, classes, {}, top_k=2, all_probabilities=True)
    write_table(tmp_path / "out.csv", table)
    write_table(tmp_path / "out.parquet", table)
    rows = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 7
    for cell in (cell for row in rows for cell in row):
        assert not cell.startswith(("=", "+", "-", "@"))
        assert "\x1b" not in cell
    exact = pq.read_table(tmp_path / "out.parquet")
    assert exact["path"].to_pylist() == [*HOSTILE[:5], "\\xe9.png"]
    assert exact["prediction"].to_pylist() == classes
    assert exact.column_names[5:11] == [f"p({name})" for name in classes]
    text = terminal_text(table)
    assert len(text.splitlines()) == 7
    assert not {"\x1b", "\u202e"} & set(text)


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        (["--output", "x.txt"], "error: --output: x.txt, expected .csv or .parquet -> give a name that ends so"),
        (["--top-k", "0"], "error: tl predict: argument --top-k: got '0', expected a whole number of 1 or more -> "),
        (["--top-k", "11"], "error: --top-k: 11, the model has 10 classes -> ask for fewer"),
        (["--seed", "1"], "error: --seed: {run} is a single run -> leave it out"),
        (["--batch-size", "x"], "error: tl predict: argument --batch-size: got 'x', expected a whole number"),
    ],
)
def test_options_that_cannot_be(tl, finished, pictures, arguments, last_line):
    (path,) = pictures(1)
    code, out, err = tl("predict", finished("linear"), path, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(last_line.format(run=finished("linear")))


def test_a_full_disk_leaves_the_older_file(finished, pictures, tl, tmp_path, full_disk):
    (path,) = pictures(1)
    (tmp_path / "cwd" / "out.csv").write_text("older")
    code, _, err = tl("predict", finished("linear"), path, "--output", "out.csv", "--device", "cpu")
    assert (code, "no space is left" in err) == (1, True)
    assert [file.name for file in (tmp_path / "cwd").iterdir()] == ["out.csv"]
    assert (tmp_path / "cwd" / "out.csv").read_text() == "older"
