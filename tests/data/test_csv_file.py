"""Tables of paths and labels: equal to the folder they list, in any dialect; what is refused, by row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_experiments.data.broken import bad_images, without_bad
from tl_experiments.data.csv_file import Columns, open_csv
from tl_experiments.data.further_tests import open_test_set
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.errors import DataError

MakeFolder = Callable[[Mapping[str, int]], Path]
Write = Callable[..., Path]


@pytest.fixture
def write(make_folder: MakeFolder) -> Write:
    """``write("a/0.png,cat", ...)``: ``labels.csv`` beside ten images, under the usual names of columns."""
    root = make_folder({"a": 5, "b": 5})

    def make(*rows: str, header: str = "path,label", end: str = "\n", bom: str = "", name: str = "labels.csv") -> Path:
        path = root / name
        path.write_bytes((bom + "".join(row + end for row in (header, *rows))).encode())
        return path

    return make


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_csv(str(path), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("split", [True, False])
def test_a_table_over_a_folder_is_that_folder(make_folder: MakeFolder, split: bool) -> None:
    counts = {"ant": 3, "bee": 2, "wasp": 2}
    root = make_folder(
        {f"{s}/{c}": n for s in ("train", "val", "test") for c, n in counts.items()} if split else counts
    )
    folder = open_image_folder(str(root), allow_empty=False)
    rows = [[item.id, folder.classes[item.label], *([item.split] if split else [])] for item in folder.items]
    order = np.random.default_rng(0).permutation(len(rows))
    header = ["path", "label", *(["split"] if split else [])]
    table = root.parent / "labels.csv"
    table.write_text("\n".join(",".join(map(str, row)) for row in [header, *(rows[index] for index in order)]))
    source = open_csv(str(table), str(root))
    assert source.items == folder.items
    assert source.classes == folder.classes
    assert source.fingerprint == folder.fingerprint
    assert np.array_equal(source.load(4), folder.load(4))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_dialects(write: Write, end: str, bom: str, delimiter: str) -> None:
    rows = ["a/0.png,cat,train,x", '"./b/0.png",dög,val,', "", "b/1.png, dög ,train,"]
    rows = [row.replace(",", delimiter) for row in rows]
    source = open_csv(str(write(*rows, header="path,label,split,note".replace(",", delimiter), end=end, bom=bom)))
    assert source.classes == ("cat", "dög")
    assert [(item.id, item.label, item.split) for item in source.items] == [
        ("a/0.png", 0, "train"),
        ("b/1.png", 1, "train"),
        ("b/0.png", 1, "val"),
    ]


def test_quoted_cells_hold_delimiters(write: Write) -> None:
    source = open_csv(str(write('a/0.png,"big, ""old"" cat"', "a/1.png,dog")))
    assert source.classes == ('big, "old" cat', "dog")


def test_columns_and_root_may_have_other_names(write: Write, tmp_path: Path) -> None:
    table = write("1.png,x,dev,7", "0.png,x,train,8", "2.png,y,train,9", header="file,kind,part,n", name="t.tsv")
    moved = table.rename(tmp_path / "t.csv")
    source = open_csv(str(moved), str(tmp_path / "photos" / "a"), Columns("file", "kind", "part"))
    assert [(item.id, item.split) for item in source.items] == [
        ("0.png", "train"),
        ("2.png", "train"),
        ("1.png", "val"),
    ]


def test_arrays_and_absolute_paths(write: Write, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 7), dtype=np.uint8)
    np.save(tmp_path / "seven.npy", pixels)
    np.save(tmp_path / "photos" / "eight.npy", 255 - pixels)
    source = open_csv(str(write(f"{tmp_path / 'seven.npy'},x", "eight.npy,y")), channels=7)
    assert np.array_equal(source.load(0), pixels)
    assert np.array_equal(source.load(1), 255 - pixels)


def test_integer_labels_are_in_numerical_order(write: Write) -> None:
    source = open_csv(str(write(*(f"a/{n}.png,{label}" for n, label in enumerate([10, 2, 1])))))
    assert source.classes == ("1", "2", "10")
    assert any("numerical order" in note for note in source.notes)
    assert open_csv(str(write("a/0.png,10", "a/1.png,2", "a/2.png,x"))).classes == ("10", "2", "x")


def test_integers_beside_class_names_are_positions(write: Write) -> None:
    source = open_csv(str(write("a/0.png,1", "a/1.png,0")), classes=["dog", "cat", "cow"])
    assert [(item.id, source.classes[item.label]) for item in source.items] == [("a/1.png", "dog"), ("a/0.png", "cat")]
    assert source.notes == ("No training image of cow (n=0).", "Labels are positions in the classes, 0 is dog.")


def test_classes_give_the_order(write: Write) -> None:
    source = open_csv(str(write("a/0.png,cat", "a/1.png,dog")), classes=["dog", "cat"])
    assert [(item.id, item.label) for item in source.items] == [("a/1.png", 0), ("a/0.png", 1)]


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        (["a/0.png,x", "a/1.png,7"], ["x", "y"], r"labels.csv row 3: label '7', expected a class of x, y -> "),
        (["a/0.png,0", "a/1.png,2"], ["x", "y"], r"row 3: label '2', expected 0 to 1 or a class of x, y -> "),
        (["a/0.png,0", "a/1.png,-1"], ["x", "y"], r"row 3: label '-1', expected 0 to 1"),
        (
            ["a/0.png,x", "a/1.png,", "a/2.png,nan"],
            None,
            r"row 3: label empty, expected a class; as bad are rows 4 -> ",
        ),
        (["a/0.png,x", "a/1.png,NaN"], None, r"row 3: label NaN, expected a class -> "),
        (["a/0.png,x", "b/1.png,y", "./a/0.png,x"], None, r"row 4: a/0.png stands in row 2 already -> keep one"),
        (["a/0.png,x", "a/0.png,y"], None, r"row 3: a/0.png stands in row 2 already, as 'x' and here as 'y' -> "),
        (["a/0.png,x", "a/9.png,y"], None, r"row 3: no file .*photos/a/9.png -> correct the path, or dataset.root"),
        (["a/0.png,x", "../../etc,y"], None, r"row 3: no file "),
        (["a/0.png,x", ",y"], None, r"row 3: no path -> "),
        (["a/0.png,x", "a/1.png,y,z"], None, r"row 3: 3 cells, expected 2 -> quote"),
        (["a/0.png,x", "a/1.png,x"], None, r"labels.csv: 1 class \(x\), expected 2 or more"),
        (["a/0.png,x", "a/1.png,y"], ["x", "y", "x"], r"dataset.classes: classes named twice: x"),
        ([], None, r"no rows below the names"),
        (["a/0.png,x", '"a/1.png,y'], None, r"cannot be read as a table"),
    ],
)
def test_refusals(write: Write, rows: list[str], classes: list[str] | None, message: str) -> None:
    assert re.search(message, refusal(write(*rows), classes=classes))


@pytest.mark.parametrize(
    ("word", "message"),
    [("holdout", "split 'holdout', expected train, val or test"), ("", "split empty, expected train, val or test")],
)
def test_unknown_words_for_splits(write: Write, word: str, message: str) -> None:
    table = write("a/0.png,x,train", f"a/1.png,y,{word}", header="path,label,split")
    assert f"labels.csv row 3: {message}" in refusal(table)


def test_a_class_that_train_lacks(write: Write) -> None:
    table = write("a/0.png,x,train", "a/1.png,y,train", "a/2.png,z,val", header="path,label,split")
    assert "row 4: label 'z', expected a class of x, y -> " in refusal(table)
    table = write("a/0.png,x,val", "a/1.png,y,test", header="path,label,split")
    assert "no rows of the split train" in refusal(table)


def test_columns_that_are_not_there(write: Write) -> None:
    table = write("a/0.png,x", header="paths,label")
    assert "no column 'path', it has 'paths', 'label' -> give dataset.path_column: did you mean paths?" in refusal(
        table
    )
    assert "no column 'part'" in refusal(write("a/0.png,x"), columns=Columns(split="part"))
    assert "2 columns 'path'" in refusal(write("a/0.png,x,y", header="path,label,path"))


def test_files_that_are_no_tables(write: Write, tmp_path: Path) -> None:
    assert "cannot be read (No such file" in refusal(tmp_path / "none.csv")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    table = write("a/0.png,x")
    table.write_bytes(b"path,label\na/0.png,x\na/1.png,caf\xe9\n")
    assert f"{table} row 3: byte 0xe9 is not UTF-8 -> save the table as UTF-8" in refusal(table)
    table.write_bytes(b"PK\x03\x04\x00\x00\xbd")
    assert "is a binary file, expected a table of text: csv or tsv -> give the table" in refusal(table)
    np.savez(tmp_path / "x.npz", x=np.arange(200))
    assert "x.npz is a binary file, expected a table of text: csv or tsv -> dataset=npz" in refusal(tmp_path / "x.npz")
    table.write_bytes(b"")
    assert "empty, expected a row with the names" in refusal(table)


def test_hostile_names_stay_text(write: Write, tmp_path: Path) -> None:
    names = ["=cmd", "<script>", "[red]", "\x1b[31m", "😀", "../x"]
    Image.new("RGB", (2, 2)).save(tmp_path / "photos" / "<b>😀=1.png")
    rows = [f"a/{n}.png,{name}" for n, name in enumerate(names[:5])] + ["<b>😀=1.png,../x"]
    source = open_csv(str(write(*rows)))
    assert set(source.classes) == set(names)
    assert source.load(next(n for n, item in enumerate(source.items) if "<b>" in item.id)).size == (2, 2)


def test_tables_over_one_root_remember_their_own_digests(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_experiments.data import digests

    now = digests.time.time_ns()
    monkeypatch.setattr(digests.time, "time_ns", lambda: now + 3600 * 10**9)
    read: list[str] = []
    real = digests._sha256
    monkeypatch.setattr(digests, "_sha256", lambda path: read.append(path.name) or real(path))  # type: ignore[func-returns-value]
    tables = [write("a/0.png,x", "a/1.png,y", name="1.csv"), write("a/2.png,x", "a/3.png,y", name="2.csv")]
    prints = [open_csv(str(table), digests=tmp_path / "memory").fingerprint for table in tables * 3]
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png"]
    assert len(set(prints)) == 2


def test_a_further_test_set(write: Write, make_folder: MakeFolder) -> None:
    whole = write("a/0.png,x,train", "none.png,y,train", "a/1.png,y,test", header="path,label,split", name="whole.csv")
    source = open_test_set("old", str(whole), 3)
    assert [(item.id, source.classes[item.label]) for item in source.items] == [("a/1.png", "y")]
    plain = write("a/1.png,y", "a/2.png,x", name="plain.csv")
    assert open_test_set("old", str(plain), 3).classes == ("x", "y")
    broken = write("a/1.png,y", "a/2.png,", name="broken.csv")
    with pytest.raises(DataError, match=r"dataset.tests.old .*broken.csv row 3: label empty, expected a class"):
        open_test_set("old", str(broken), 3)


def test_broken_images_are_found_with_their_paths(write: Write) -> None:
    table = write("a/0.png,x", "a/1.png,y", "a/2.png,y")
    broken = table.parent / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    assert [one.path for one in bad_images(open_csv(str(table)))] == [str(broken)]
    left = without_bad(open_csv(str(table)))
    assert [item.id for item in left.items] == ["a/0.png", "a/2.png"]
    assert np.array_equal(left.load(1), np.asarray(Image.open(table.parent / "a" / "2.png")))
