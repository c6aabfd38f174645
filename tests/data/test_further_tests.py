"""Further test sets as part of a source: their images, classes and fingerprint; what cannot be one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_experiments.config.augmentations import NoAugmentation
from tl_experiments.config.datasets import Digits, ImageFolder
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.sources import open_dataset, open_source
from tl_experiments.data.transforms import Geometry
from tl_experiments.errors import ConfigError, DataError

FolderCfg = Callable[..., ImageFolder]
MAIN = {"a": 12, "b": 10, "c": 11}


def write(root: Path, counts: dict[str, int], shade: int = 0) -> Path:
    """PNGs of one colour: the first channel is ``shade``, the second the class, the third the number."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 7), (shade, number, index)).save(root / folder / f"{index}.png")
    return root


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return write(tmp_path / "main", MAIN)


def test_they_are_appended_and_classes_go_by_name(tmp_path: Path, main: Path, folder_cfg: FolderCfg) -> None:
    sketch = write(tmp_path / "sketch", {"c": 2, "b": 3}, shade=1)
    split = write(tmp_path / "split", {"train/x": 1, "test/a": 1, "test/c": 1}, shade=2)
    opened = open_dataset(folder_cfg(main, tests={"sketch": str(sketch), "clip art": str(split)}), 0)
    alone = open_dataset(folder_cfg(main), 0)
    items = opened.source.items
    assert items[: len(alone.source.items)] == alone.source.items
    assert [(item.id, item.label, item.split) for item in items[sum(MAIN.values()) :]] == [
        ("clip_art:a/0.png", 0, "test/clip_art"),
        ("clip_art:c/0.png", 2, "test/clip_art"),
        ("sketch:b/0.png", 1, "test/sketch"),
        ("sketch:b/1.png", 1, "test/sketch"),
        ("sketch:b/2.png", 1, "test/sketch"),
        ("sketch:c/0.png", 2, "test/sketch"),
        ("sketch:c/1.png", 2, "test/sketch"),
    ]
    assert opened.used.tests == ("test", "test/clip_art", "test/sketch")
    for split_name in ("train", "val", "test"):
        assert np.array_equal(opened.used.indices[split_name], alone.used.indices[split_name])
    assert opened.used.indices["test/sketch"].tolist() == list(range(35, 40))
    assert opened.used.notes[-2:] == (
        "test/clip_art has no image of b (n=0).",
        "test/sketch has no image of a (n=0).",
    )
    colours = [np.asarray(opened.source.load(index))[0, 0].tolist() for index in (0, 32, 33, 34, 35, 39)]
    assert colours == [[0, 0, 0], [0, 2, 9], [2, 1, 0], [2, 2, 0], [1, 1, 0], [1, 0, 1]]


def test_the_fingerprint_covers_them_and_is_the_old_one_without(
    tmp_path: Path, main: Path, folder_cfg: FolderCfg
) -> None:
    sketch = write(tmp_path / "sketch", {"a": 2, "b": 3}, shade=1)

    def of(**tests: Any) -> str:
        return open_dataset(folder_cfg(main, tests={name: str(path) for name, path in tests.items()}), 0).fingerprint

    first = of(sketch=sketch)
    assert of(sketch=sketch) == first
    assert of() != first != of(other=sketch)
    assert of(one=sketch, two=main) == of(two=main, one=sketch)
    Image.new("RGB", (9, 7), (9, 9, 9)).save(sketch / "a/0.png")
    assert of(sketch=sketch) != first


def test_a_dataset_that_is_in_memory_takes_them_too(tmp_path: Path, digits_cfg: Callable[..., Digits]) -> None:
    root = write(tmp_path / "usps", {"3": 2, "7": 1}, shade=5)
    cfg = digits_cfg(tests={"usps": str(root)})
    source = open_source(cfg)
    assert not source.decoded_in_memory
    assert [item.label for item in source.items[-3:]] == [3, 3, 7]
    geometry = Geometry(image_size=8, interpolation="bilinear", crop_fraction=1.0)
    options = {"seed": 0, "batch_size": 8, "eval_batch_size": 2, "num_workers": 0}
    data = TransferDataModule(cfg, NoAugmentation(name="none"), geometry, **options)
    assert data.spec.sizes["test/usps"] == 3
    batches = list(data.eval_loader("test/usps"))
    assert [len(batch["label"]) for batch in batches] == [2, 1]
    assert [batch["image"][0, 0, 0, 0].item() for batch in batches] == [5, 5]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {"a": 1, "dog": 2, "cat": 2},
            r"^dataset\.tests\.x: cat, dog among its classes, expected only a, b, c -> name its classes as the dataset",
        ),
        ({"train/a": 1, "val/a": 1}, r"dataset\.tests\.x: .* has train, val and no test, .* for example .*/x/val$"),
        ({}, r"dataset\.tests\.x: .*x does not exist, expected a folder"),
    ],
)
def test_what_is_no_test_set_is_refused(
    counts: dict[str, int], message: str, tmp_path: Path, main: Path, folder_cfg: FolderCfg
) -> None:
    write(tmp_path / "x", counts)
    with pytest.raises(DataError, match=message):
        open_source(folder_cfg(main, tests={"x": str(tmp_path / "x")}))


@pytest.mark.parametrize("split", [False, True])
def test_a_table_names_the_images_too(split: bool, tmp_path: Path, main: Path, folder_cfg: FolderCfg) -> None:
    write(tmp_path / "x", {"one": 3, "two": 2}, shade=4)
    rows = ["two/1.png,c,test", "one/0.png,a,test", "one/2.png,a,train"]
    header = "path,label,split" if split else "path,label,where"
    (tmp_path / "x" / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    source = open_source(folder_cfg(main, tests={"x": str(tmp_path / "x" / "labels.csv")}))
    found = [
        (item.id, item.label, np.asarray(source.load(index))[0, 0].tolist())
        for index, item in enumerate(source.items)
        if item.split == "test/x"
    ]
    rest = [("x:one/2.png", 0, [4, 0, 2])]
    assert found == [("x:one/0.png", 0, [4, 0, 0]), *([] if split else rest), ("x:two/1.png", 2, [4, 1, 1])]
    assert len(list(source.contents())) == len(source.items)
    assert not [note for note in source.notes if "x" in note]


def test_a_table_with_a_stranger_or_without_test_rows_is_refused(
    tmp_path: Path, main: Path, folder_cfg: FolderCfg
) -> None:
    write(tmp_path / "x", {"one": 3})
    table = tmp_path / "x" / "labels.csv"
    cfg = folder_cfg(main, tests={"x": str(table)})
    table.write_text("path,label\none/0.png,dog\n")
    with pytest.raises(DataError, match=r"labels.csv row 2: label 'dog', expected a class of a, b, c"):
        open_source(cfg)
    table.write_text("path,label,split\none/0.png,a,train\n")
    with pytest.raises(DataError, match=r"dataset\.tests\.x .*labels.csv: no rows of the split test -> mark some so"):
        open_source(cfg)


def test_broken_images_are_named_or_left_out(tmp_path: Path, main: Path, folder_cfg: FolderCfg) -> None:
    root = write(tmp_path / "x", {"a": 3, "b": 2})
    (root / "a/1.png").write_bytes((root / "a/1.png").read_bytes()[:40])
    source = open_source(folder_cfg(main, tests={"x": str(root)}, on_bad="skip"))
    assert list(source.skipped) == ["x:a/1.png"]
    assert [item.id for item in source.items[33:]] == ["x:a/0.png", "x:a/2.png", "x:b/0.png", "x:b/1.png"]
    assert np.asarray(source.load(34))[0, 0].tolist() == [0, 0, 2]


def test_a_test_set_may_have_one_class_and_empty_folders(tmp_path: Path, main: Path, folder_cfg: FolderCfg) -> None:
    root = write(tmp_path / "x", {"a": 2, "b": 0})
    opened = open_dataset(folder_cfg(main, tests={"x": str(root)}), 0)
    assert opened.used.indices["test/x"].size == 2
    assert "test/x has no image of b, c (n=0)." in opened.used.notes


@pytest.mark.parametrize("names", [("a b", "a_b"), ("../..",), ("",)])
def test_names_must_be_told_apart(names: tuple[str, ...], main: Path, folder_cfg: FolderCfg) -> None:
    with pytest.raises(ConfigError, match=r"^tests: got .*, expected names with letters or digits"):
        folder_cfg(main, tests=dict.fromkeys(names, "/x"))


@pytest.mark.parametrize(
    ("name", "slug"), [("sketch", "sketch"), ("Clip art!", "Clip_art"), ("a/../b", "a_.._b"), ("=1+1", "1_1")]
)
def test_names_become_fit_for_files_and_keys(name: str, slug: str, main: Path, folder_cfg: FolderCfg) -> None:
    assert folder_cfg(main, tests={name: "/x"}).test_sets == {slug: "/x"}


def test_a_test_set_in_an_npz_file_is_refused_by_its_kind(tmp_path: Path, main: Path, folder_cfg: FolderCfg) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(200))
    with pytest.raises(DataError, match=r"^dataset\.tests\.x: \S+x\.npz is an npz file, expected a folder .* or a csv"):
        open_source(folder_cfg(main, tests={"x": str(tmp_path / "x.npz")}))
