"""Files are decoded once and remembered; broken ones are named or left out; copies and look-alikes are found."""

from __future__ import annotations

import builtins
import csv
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tl_experiments.config.datasets import ImageFolder
from tl_experiments.data import checking, digests
from tl_experiments.data.broken import BAD_IMAGES_FILE, bad_images, refuse_bad, without_bad
from tl_experiments.data.checking import check_bytes, check_loaded
from tl_experiments.data.findings import conflicts, copies, leakage_notes, near_duplicates
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.items import Source
from tl_experiments.data.sources import divide, open_dataset, open_source
from tl_experiments.errors import DataError

MakeFolder = Callable[[Mapping[str, int]], Path]
Cfg = Callable[..., ImageFolder]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are opened to be read, by whatever; and files count as settled at once."""
    names: list[str] = []
    real = io.open

    def noted(file: object, mode: str) -> None:
        if mode.startswith("r") and str(file).endswith((".png", ".jpg")):
            names.append(Path(str(file)).name)

    def builtin(file: object, mode: str = "r", *rest: object, **options: object) -> object:
        noted(file, mode)
        return real(file, mode, *rest, **options)  # type: ignore[call-overload]

    def of_a_path(self: Path, mode: str = "r", *rest: object, **options: object) -> object:
        noted(self, mode)
        return real(self, mode, *rest, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", builtin)
    monkeypatch.setattr(Path, "open", of_a_path)
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))
    return names


def _open(root: Path, memory: Path | None = None, **options: int) -> Source:
    return open_image_folder(str(root), allow_empty=False, digests=memory, **options)


def _spoil(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(b"no image")


def test_one_read_serves_digest_and_decoding_and_the_second_time_nothing_is_read(
    make_folder: MakeFolder, opened: list[str], tmp_path: Path
) -> None:
    root = make_folder({"a": 3, "b": 4})
    _spoil(root, "a/bad.png")
    source = _open(root, tmp_path / "memory")
    first = source.check()
    fingerprint = source.fingerprint
    assert sorted(opened) == sorted(path.name for path in root.rglob("*.png"))
    assert [one.digest for one in first] == [
        hashlib.sha256((root / item.id).read_bytes()).hexdigest() for item in source.items
    ]
    opened.clear()
    again = _open(root, tmp_path / "memory")
    assert again.check() == first
    assert again.fingerprint == fingerprint
    assert opened == []
    assert [(one.width, one.height, one.mode, one.format) for one in first if one.problem is None] == [
        (20, 16, "RGB", "PNG")
    ] * 7


def test_a_digest_alone_that_was_remembered_is_no_verdict(
    make_folder: MakeFolder, opened: list[str], tmp_path: Path
) -> None:
    root = make_folder({"a": 1, "b": 1})
    _spoil(root, "a/bad.png")
    assert _open(root, tmp_path / "memory").fingerprint  # decodes nothing
    assert len(bad_images(_open(root, tmp_path / "memory"))) == 1
    opened.clear()
    assert _open(root, tmp_path / "memory").fingerprint
    assert len(bad_images(_open(root, tmp_path / "memory"))) == 1
    assert opened == []


def test_a_changed_file_is_judged_anew(make_folder: MakeFolder, opened: list[str], tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b": 2})
    assert bad_images(_open(root, tmp_path / "memory")) == []
    old = (root / "a/1.png").stat()
    (root / "a/1.png").write_bytes(bytes(old.st_size))
    os.utime(root / "a/1.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    opened.clear()
    (bad,) = bad_images(_open(root, tmp_path / "memory"))
    assert (bad.path, opened) == (str(root / "a/1.png"), ["1.png"])
    os.remove(root / "a/1.png")
    os.symlink("nowhere", root / "a/1.png")
    (bad,) = bad_images(_open(root, tmp_path / "memory"))
    assert bad.problem == "cannot be read (No such file or directory)"


def test_another_limit_is_a_new_verdict_and_only_what_was_refused_is_read_again(
    make_folder: MakeFolder, opened: list[str], tmp_path: Path
) -> None:
    root = make_folder({"a": 1, "b": 1})
    Image.new("RGB", (100, 90)).save(root / "a" / "large.png")
    verdicts, read = [], []
    for limit in (5000, 5000, 9000, 8999, 300):
        opened.clear()
        bad = bad_images(_open(root, tmp_path / "memory", max_pixels=limit))
        verdicts.append({Path(one.path).relative_to(root).as_posix(): one.problem for one in bad})
        read.append(sorted(opened))
    refused = "9,000 pixels, dataset.max_pixels is "
    assert verdicts[:4] == [
        {"a/large.png": f"{refused}5,000"},
        {"a/large.png": f"{refused}5,000"},
        {},
        {"a/large.png": f"{refused}8,999"},
    ]
    assert len(verdicts[4]) == 3
    assert read == [["0.png", "0.png", "large.png"], [], ["large.png"], [], []]


def test_datasets_below_one_root_do_not_forget_each_other(
    make_folder: MakeFolder, opened: list[str], tmp_path: Path
) -> None:
    root = make_folder({"a": 2, "b": 2})
    halves = [("a/0.png", "b/0.png"), ("a/1.png", "b/1.png")]
    for paths in halves:
        checking.Files(root, paths, 3, 10**6, tmp_path / "memory").check()
    assert len(opened) == 4
    for paths in halves:
        checking.Files(root, paths, 3, 10**6, tmp_path / "memory").check()
    assert len(opened) == 4


def test_arrays_are_judged_by_their_channels(tmp_path: Path) -> None:
    for name, channels in (("a", 5), ("b", 4)):
        (tmp_path / "set" / name).mkdir(parents=True)
        np.save(tmp_path / "set" / name / "0.npy", np.zeros((4, 6, channels), np.uint8))
    (bad,) = bad_images(_open(tmp_path / "set", tmp_path / "memory", channels=4))
    assert bad.problem == "an array of 5 channels, expected 4"
    (bad,) = bad_images(_open(tmp_path / "set", tmp_path / "memory", channels=5))
    assert (bad.problem, bad.width, bad.height) == ("an array of 4 channels, expected 5", 6, 4)


def test_all_bad_images_are_counted_some_listed_and_every_one_written(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b": 2})
    _spoil(root, *(f"a/{number}.jpg" for number in range(7)), "b/=cmd.jpg")
    source = _open(root)
    with pytest.raises(DataError) as caught:
        refuse_bad(source, tmp_path / "out")
    text = str(caught.value)
    assert text.startswith("dataset: 8 of 12 images cannot be used: ")
    assert text.count("no image format that is read, 8 bytes") == 5
    assert f"{root / 'a/0.jpg'} (cannot be decoded: no image format" in text
    assert text.endswith(f"dataset.on_bad=skip to leave them out; all of them: {tmp_path / 'out' / BAD_IMAGES_FILE}")
    rows = list(csv.reader((tmp_path / "out" / BAD_IMAGES_FILE).open()))
    assert [row[0] for row in rows] == ["path", *(one.path for one in bad_images(source))]


def test_what_is_left_out_is_said_and_the_fingerprint_is_that_of_the_rest(
    make_folder: MakeFolder, folder_cfg: Cfg, tmp_path: Path
) -> None:
    root = make_folder({"train/a": 5, "train/b": 5, "test/a": 3, "test/b": 3})
    clean = open_dataset(folder_cfg(root), 0)
    _spoil(root, "train/a/1x.png", "test/b/0x.png")
    whole = open_source(folder_cfg(root))
    skipping = open_dataset(folder_cfg(root, on_bad="skip"), 0, digests=tmp_path / "memory")
    assert len(whole.items) == len(skipping.source.items) + 2
    assert skipping.fingerprint == clean.fingerprint
    assert skipping.source.items == clean.source.items
    assert [np.asarray(skipping.source.load(index)).sum() for index in range(16)] == [
        np.asarray(clean.source.load(index)).sum() for index in range(16)
    ]
    reason = "cannot be decoded: no image format that is read, 8 bytes"
    assert skipping.source.skipped == {"train/a/1x.png": reason, "test/b/0x.png": reason}
    assert skipping.source.notes == (
        f"Left out 2 images that cannot be used: train/a/1x.png ({reason}), test/b/0x.png ({reason}).",
    )
    assert bad_images(skipping.source) == []


def test_a_class_that_is_left_empty_is_an_error(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    _spoil(root, "val/a/0.png")  # of val it is said elsewhere that n=0
    assert len(without_bad(_open(root)).items) == 5
    _spoil(root, "train/b/0.png", "train/b/1.png")
    with pytest.raises(DataError, match=r"dataset.on_bad: no image of b can be used \(3 images in all cannot\) -> "):
        without_bad(_open(root))


def test_images_in_a_table_go_through_the_same_check(tmp_path: Path) -> None:
    def encoded(image: Image.Image) -> bytes:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()

    rows = [encoded(Image.new("RGB", (6, 5), "red")), b"broken", encoded(Image.new("L", (200, 200)))]
    rows.append(rows[0])
    read: list[int] = []

    def get(index: int) -> bytes:
        read.append(index)
        return rows[index]

    names = [f"train/{index}" for index in range(4)]
    found = check_bytes(names, get, 3, 30_000, tmp_path / "memory", Path("/tables/one"))
    assert [one.problem for one in found] == [
        None,
        "cannot be decoded: no image format that is read, 6 bytes",
        "40,000 pixels, dataset.max_pixels is 30,000",
        None,
    ]
    assert [one.digest for one in found] == [hashlib.sha256(row).hexdigest() for row in rows]
    assert [one.path for one in found] == names
    read.clear()
    assert check_bytes(names, get, 3, 30_000, tmp_path / "memory", Path("/tables/one")) == found
    assert sorted(read) == [0, 1, 2, 3]  # for the digests; what decoding told is remembered


def _scene(seed: int) -> Image.Image:
    """Something with large shapes, as photos have them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def test_copies_leakage_and_contradicting_labels_are_found(make_folder: MakeFolder, folder_cfg: Cfg) -> None:
    root = make_folder({"train/a": 5, "train/b": 5, "val/a": 1, "val/b": 1, "test/a": 2, "test/b": 2})
    shown = (root / "train/a/0.png").read_bytes()
    (root / "test/a/copy.png").write_bytes(shown)
    (root / "train/b/copy.png").write_bytes((root / "train/b/1.png").read_bytes())
    (root / "train/b/other.png").write_bytes((root / "train/a/2.png").read_bytes())
    source = open_source(folder_cfg(root))
    splits = divide(source, folder_cfg(root), 0).whole.indices
    groups = copies(source.check(), splits)
    named = {tuple(source.items[index].id for index in group.items): group.splits for group in groups}
    assert named == {
        ("train/a/0.png", "test/a/copy.png"): ("train", "test"),
        ("train/b/1.png", "train/b/copy.png"): ("train",),
        ("train/a/2.png", "train/b/other.png"): ("train",),
    }
    assert [group.splits for group in groups if group.leak] == [("train", "test")]
    (wrong,) = conflicts(source, groups)
    assert {source.items[index].id for index in wrong.items} == {"train/a/2.png", "train/b/other.png"}
    assert leakage_notes(source, splits) == (
        "Leakage: 1 image stands in more than one split (train/a/0.png = test/a/copy.png).",
    )


def test_planted_look_alikes_are_found_and_nothing_else(tmp_path: Path, folder_cfg: Cfg) -> None:
    """The same scenes, made smaller, encoded worse, brightened or cropped by a hair, in another split."""
    changes: list[tuple[str, Callable[[Image.Image], Image.Image], dict[str, int]]] = [
        ("smaller", lambda image: image.resize((80, 60)), {}),
        ("worse", lambda image: image, {"quality": 30}),
        ("brighter", lambda image: ImageEnhance.Brightness(image).enhance(1.1), {}),
        ("cropped", lambda image: image.crop((1, 1, 159, 119)), {}),
    ]
    for label in ("a", "b"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        (tmp_path / "set" / "test" / label).mkdir(parents=True)
        for number in range(40):
            scene = _scene(number + 1000 * (label == "b"))
            scene.save(tmp_path / "set" / "train" / label / f"{number}.jpg", quality=95)
            _scene(500 + number + 1000 * (label == "b")).save(tmp_path / "set" / "test" / label / f"new{number}.jpg")
    for number, (name, change, options) in enumerate(changes):
        change(_scene(number)).save(tmp_path / "set" / "test" / "a" / f"{name}.jpg", **options)
    Image.new("RGB", (160, 120), "grey").save(tmp_path / "set" / "train" / "a" / "plain.jpg")
    Image.new("RGB", (120, 160), "white").save(tmp_path / "set" / "test" / "a" / "plain.jpg")
    cfg = folder_cfg(tmp_path / "set")
    source = open_source(cfg)
    near = near_duplicates(source.check(), divide(source, cfg, 0).whole.indices)
    found = {tuple(Path(source.items[index].id).stem for index in pair.items) for pair in near}
    assert found == {(str(number), name) for number, (name, _, _) in enumerate(changes)}


@pytest.mark.parametrize(("name", "at_most"), [("eurosat", 2), ("flowers5", 4), ("hymenoptera", 2)])
def test_real_images_raise_few_false_alarms(shared_data: Path, folder_cfg: Cfg, name: str, at_most: int) -> None:
    cfg = folder_cfg(shared_data / name)
    source = open_source(cfg)
    assert bad_images(source) == []
    splits = divide(source, cfg, 0).whole.indices
    assert not [group for group in copies(source.check(), splits) if group.leak]
    assert len(near_duplicates(source.check(), splits)) <= at_most


def test_the_signature_is_the_low_frequencies_of_scipy() -> None:
    from scipy.fft import dctn

    image = _scene(3)
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    lowest = dctn(small, norm="ortho")[:8, :8].ravel()
    expected = "".join("1" if value > np.median(lowest[1:]) else "0" for value in lowest)
    signature = checking._signature(image)
    assert signature is not None
    assert f"{int(signature, 16):064b}" == expected


def test_what_is_no_file_is_looked_at_by_its_pixels(digits_cfg: Callable[..., object]) -> None:
    source = open_source(digits_cfg())  # type: ignore[arg-type]
    found = check_loaded(source)
    assert len(found) == 1797
    assert {(one.width, one.height, one.mode, one.problem) for one in found} == {(8, 8, "RGB", None)}
    assert found[5].digest == hashlib.sha256(np.asarray(source.load(5)).tobytes()).hexdigest()
