"""Folders of images: what is read, what is ignored, and what is refused in which words."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_experiments.data.decode import _FORMATS
from tl_experiments.data.endings import ENDINGS
from tl_experiments.data.image_folder import LAYOUT, open_image_folder
from tl_experiments.errors import DataError

MakeFolder = Callable[[Mapping[str, int]], Path]


def test_splits_and_classes_are_read(make_folder: MakeFolder) -> None:
    root = make_folder({"test/b": 1, "train/b": 2, "train/a": 1, "val/a": 1, "val/b": 1})
    source = open_image_folder(str(root), allow_empty=False)
    assert source.classes == ("a", "b")
    assert [(item.id, item.label, item.split) for item in source.items] == [
        ("train/a/0.png", 0, "train"),
        ("train/b/0.png", 1, "train"),
        ("train/b/1.png", 1, "train"),
        ("val/a/0.png", 0, "val"),
        ("val/b/0.png", 1, "val"),
        ("test/b/0.png", 1, "test"),
    ]
    assert np.array_equal(source.load(2), np.asarray(Image.open(root / "train/b/1.png")))
    assert source.notes == ()


def test_class_folders_alone_are_not_split(make_folder: MakeFolder) -> None:
    source = open_image_folder(str(make_folder({"cat": 1, "dog": 2})), allow_empty=False)
    assert [(item.id, item.label, item.split) for item in source.items] == [
        ("cat/0.png", 0, None),
        ("dog/0.png", 1, None),
        ("dog/1.png", 1, None),
    ]


def test_labels_go_by_name_where_val_lacks_a_class(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "train/c": 1, "val/a": 1, "val/c": 2})
    source = open_image_folder(str(root), allow_empty=False)
    assert Counter(item.label for item in source.items if item.split == "val") == {0: 1, 2: 2}


def test_classes_are_sorted_as_text(make_folder: MakeFolder) -> None:
    assert open_image_folder(str(make_folder({"2": 1, "10": 1, "B": 1, "a": 1})), False).classes == (
        "10",
        "2",
        "B",
        "a",
    )


def test_hidden_and_other_files_are_ignored_and_extensions_are_not_case_sensitive(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1, ".thumbnails": 1, "a/.cache": 1})
    for name in ("labels.txt", ".DS_Store", "a/notes.csv", "a/._0.png", "a/noextension"):
        (root / name).write_text("x")
    for extension in ENDINGS:
        shutil.copy(root / "b/0.png", root / f"b/copy{extension.upper()}")
    source = open_image_folder(str(root), allow_empty=False)
    assert [item.id for item in source.items if item.label == 0] == ["a/0.png"]
    assert sum(item.label == 1 for item in source.items) == 1 + len(ENDINGS)


def test_files_that_are_passed_over_are_counted_by_ending_but_for_texts_and_tables(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1})
    before = open_image_folder(str(root), allow_empty=False)
    for name in ("a/1.heic", "b/2.HEIC", "b/noending", "a/notes.txt", "a/.hidden.raw", "b/labels.csv"):
        (root / "train" / name).write_text("x")
    source = open_image_folder(str(root), allow_empty=False)
    assert source.notes == ("3 files passed over (2 .heic, 1 without ending): the ending is no image's.",)
    assert (before.notes, source.fingerprint) == ((), before.fingerprint)


def test_an_ending_of_every_format_that_is_decoded_is_taken() -> None:
    Image.init()
    assert {one for one, name in Image.EXTENSION.items() if name in _FORMATS} <= ENDINGS


def test_root_expands_home_and_variables(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 1, "b": 1})
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("PHOTOS", root.name)
    assert len(open_image_folder("~/$PHOTOS", allow_empty=False).items) == 2


def test_links_to_outside_are_followed_and_dangling_ones_are_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 1, "b": 1, "c": 1})
    shutil.move(root / "c", tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/link.png").symlink_to(tmp_path / "elsewhere/0.png")
    assert [item.id for item in open_image_folder(str(root), False).items][1::2] == ["a/link.png", "c/0.png"]
    (tmp_path / "elsewhere/0.png").rename(tmp_path / "gone")
    (root / "c").unlink()
    with pytest.raises(
        DataError, match=r"a/link\.png: cannot be read \(No such file or directory\) -> replace or remove"
    ):
        _ = open_image_folder(str(root), allow_empty=False).fingerprint  # reads what opening only listed


REFUSED = {
    "missing": ({}, "nothing", r"photos/nothing does not exist, expected a folder: LAYOUT -> correct the path"),
    "a file": ({"a": 1}, "a/0.png", r"0\.png is a file, expected a folder: LAYOUT -> correct the path"),
    "empty": ({}, "", r"photos has no class folders, expected LAYOUT -> correct the path or add images"),
    "flat": (
        {".": 7},
        "",
        r"7 images outside a class folder \(0\.png, 1\.png, .* \.\.\. \(7 in all\)\), expected LAYOUT",
    ),
    "stray": ({"a": 1, "b": 1, ".": 1}, "", r"1 images outside a class folder \(0\.png\), expected LAYOUT -> put each"),
    "flat split": ({"train/a": 1, "train/b": 1, "test": 2}, "", r"photos/test has 2 images outside a class folder"),
    "empty split": ({"train/a": 1, "train/b": 1, "val": 0}, "", r"photos/val has no class folders, expected LAYOUT"),
    "deeper": (
        {"a": 1, "b/c/": 1},
        "",
        r"class folder \S+/b has folders in it \(c\), expected LAYOUT -> put the images",
    ),
    "other split names": (
        {"train/a": 1, "train/b": 1, "valid/a": 1},
        "",
        r"photos has valid beside train, expected only train, val and test -> rename it \(validation and valid are",
    ),
    "no train": (
        {"val/a": 1, "test/a": 1},
        "",
        r"photos has val, test and no train, expected LAYOUT -> add a train folder",
    ),
    "extra class": (
        {"train/a": 1, "train/b": 1, "val/a": 1, "val/x": 1, "test/y": 1},
        "",
        r"val/x, test/y without images of that class in train, which has a, b -> add the class to train, or remove it",
    ),
    "one class": ({"a": 3}, "", r"1 class \(a\), expected 2 or more -> add another class folder"),
    "empty class": (
        {"train/a": 1, "train/b": 1, "train/c": 0, "val/b": 0},
        "",
        r"2 class folders without an image \(train/c, val/b\) -> fill or remove them, or dataset\.allow_empty=true",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_what_was_seen(case: str, make_folder: MakeFolder) -> None:
    counts, below, message = REFUSED[case]
    root = make_folder({key: count for key, count in counts.items() if key != "."})
    for number in range(counts.get(".", 0)):
        Image.new("RGB", (4, 4)).save(root / f"{number}.png")
    with pytest.raises(DataError, match="^dataset.root: .*" + message.replace("LAYOUT", re.escape(LAYOUT))) as caught:
        open_image_folder(str(root / below), allow_empty=False)
    assert "\n" not in str(caught.value)


def test_allow_empty_leaves_empty_classes_out(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "train/c": 0, "val/b": 0, "val/a": 1})
    source = open_image_folder(str(root), allow_empty=True)
    assert source.classes == ("a", "b")
    assert source.notes == ("Left out for want of images: train/c, val/b.",)


def test_allow_empty_still_wants_a_class_in_train_that_val_has(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "train/c": 0, "val/c": 1})
    with pytest.raises(DataError, match="val/c without images of that class in train, which has a, b"):
        open_image_folder(str(root), allow_empty=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_named(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "b").chmod(0)
    with pytest.raises(DataError, match=r"/b cannot be read \(Permission denied\) -> check its permissions"):
        open_image_folder(str(root), allow_empty=False)


def test_fingerprint_follows_contents_and_names_but_not_the_place(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b": 1})

    def now(folder: Path = root) -> str:
        return open_image_folder(str(folder), allow_empty=False).fingerprint

    before = now()
    shutil.copytree(root, tmp_path / "copy")
    assert now(tmp_path / "copy") == before
    (root / "a/0.png").rename(root / "a/9.png")
    renamed = now()
    (root / "a/9.png").rename(root / "a/0.png")
    assert now() == before
    shutil.copy(root / "b/0.png", root / "a/0.png")
    replaced = now()
    (root / "b").rename(root / "c")
    assert len({before, renamed, replaced, now()}) == 4


def test_real_photos(shared_data: Path) -> None:
    source = open_image_folder(str(shared_data / "hymenoptera"), allow_empty=False)
    assert source.classes == ("ants", "bees")
    assert Counter(item.split for item in source.items) == {"train": 244, "val": 153}
    assert source.load(0).mode == "RGB"
