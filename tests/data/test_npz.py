"""Arrays of one file: the names that publishers give them, mapped or read, and what is refused."""

from __future__ import annotations

import pickle
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_experiments.data.npz import open_npz
from tl_experiments.errors import DataError

Save = Callable[..., Path]
RNG = np.random.default_rng(0)


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    def make(**arrays: object) -> Path:
        path = tmp_path / "set.npz"
        request.param(path, **arrays)
        return path

    return make


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_npz(str(path), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_medmnist(save: Save) -> None:
    parts = {split: images(n, 28, 28, 3) for split, n in [("train", 4), ("val", 2), ("test", 3)]}
    labels = {"train": [[2], [0], [1], [2]], "val": [[0], [1]], "test": [[2], [2], [0]]}
    arrays = {f"{split}_images": part for split, part in parts.items()}
    source = open_npz(str(save(**arrays, **{f"{split}_labels": np.uint8(part) for split, part in labels.items()})))
    assert source.classes == ("0", "1", "2")
    assert [(item.id, item.label, item.split) for item in source.items] == [
        *((f"train/0000{n}", label, "train") for n, label in enumerate([2, 0, 1, 2])),
        *((f"val/0000{n}", label, "val") for n, label in enumerate([0, 1])),
        *((f"test/0000{n}", label, "test") for n, label in enumerate([2, 2, 0])),
    ]
    assert source.decoded_in_memory
    for index, pixels in enumerate(np.concatenate(list(parts.values()))):
        assert np.array_equal(source.load(index), pixels)


def test_keras_grey_images_become_colour_or_stay(save: Save) -> None:
    x = images(4, 6, 5)
    path = save(x_train=x[:3], y_train=[7, 12, 7], x_test=x[3:, ..., None], y_test=[12])
    source = open_npz(str(path))
    assert source.classes == ("7", "12")
    assert [item.split for item in source.items] == ["train"] * 3 + ["test"]
    for index in range(4):
        assert np.array_equal(source.load(index), np.stack([x[index]] * 3, axis=-1))
        grey = open_npz(str(path), channels=1).load(index)
        assert isinstance(grey, Image.Image)
        assert grey.mode == "L"
        assert np.array_equal(grey, x[index])


def test_colour_becomes_grey_by_luma(save: Save) -> None:
    x = images(2, 6, 5, 3)
    grey = np.asarray(open_npz(str(save(x=x, y=[0, 1])), channels=1).load(1), float)
    assert np.abs(grey - x[1] @ [0.299, 0.587, 0.114]).max() <= 1  # ITU-R 601-2


def test_other_channels_stay_arrays(save: Save) -> None:
    x = images(2, 6, 5, 4)
    source = open_npz(str(save(x=x, y=[0, 1])), channels=4)
    assert [item.id for item in source.items] == ["all/00000", "all/00001"]
    assert {item.split for item in source.items} == {None}
    assert np.array_equal(source.load(1), x[1])


def test_text_labels_and_fortran_order(save: Save) -> None:
    x = np.asfortranarray(images(3, 6, 5))
    source = open_npz(str(save(x=x, y=np.array(["dog", "cat", "dog"]))))
    assert source.classes == ("cat", "dog")
    assert np.array_equal(np.asarray(source.load(2))[..., 0], x[2])


def test_classes_name_positions(save: Save) -> None:
    source = open_npz(str(save(x=images(3, 4, 4), y=[1, 0, 1])), classes=["dog", "cat", "cow"])
    assert [source.classes[item.label] for item in source.items] == ["cat", "dog", "cat"]
    assert source.notes == ("No training image of cow (n=0).",)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"data": images(2, 4, 4)}, {}, r"set.npz has data, expected train_images, train_labels .* or x, y -> rename"),
        ({"x": images(2, 4, 4)}, {}, r"x without y; it has x -> add y"),
        ({"x": np.zeros((2, 4, 4), np.float32), "y": [0, 1]}, {}, r"x is float32 \(2, 4, 4\), expected uint8"),
        ({"x": images(2, 4, 4, 7), "y": [0, 1]}, {}, r"x is uint8 \(2, 4, 4, 7\), expected .* dataset.channels"),
        ({"x": images(2, 4, 4), "y": [0, 1]}, {"channels": 4}, r"x has 1 channels, expected 4 -> dataset.channels=1"),
        ({"x": images(2, 4, 4), "y": [0, 1, 2]}, {}, r"y is \(3,\), expected \(2,\) or \(2, 1\)"),
        ({"x": images(2, 4, 4), "y": np.eye(2, 14)}, {}, r"y is \(2, 14\).* several labels an image are not supported"),
        ({"x": images(2, 4, 4), "y": [0.5, 1]}, {}, r"y is float64, expected integers or text"),
        ({"x": images(2, 4, 4), "y": [0, 0]}, {}, r"1 class \(0\), expected 2 or more"),
        ({"x": images(2, 4, 4), "y": [0, 2]}, {"classes": ["a", "b"]}, r"y\[1\] is '2', expected 0 to 1 -> "),
        ({"x": images(2, 4, 4), "y": ["a", ""]}, {}, r"y\[1\] is empty, expected a class"),
        (
            {"x_train": images(2, 4, 4), "y_train": [0, 1], "x_test": images(1, 4, 4), "y_test": [5]},
            {},
            r"y_test\[0\] is '5', expected 0, 1 -> .*without it: the labels of train",
        ),
        ({"x": images(2, 40, 50), "y": [0, 1]}, {"max_pixels": 1999}, r"50 x 40 pixels, expected at most 1,999"),
    ],
)
def test_refusals(save: Save, arrays: dict[str, object], options: dict[str, object], message: str) -> None:
    assert re.search(message, refusal(save(**arrays), **options))


def test_pickles_are_never_loaded(tmp_path: Path, save: Save) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(canary), "w")  # type: ignore[return-value]

    labels = np.empty(2, object)
    labels[:] = [Bomb(), 1]
    assert "y is object, expected integers or text" in refusal(save(x=images(2, 4, 4), y=labels))
    bombs = np.empty((2, 4, 4), object)
    bombs[:] = Bomb()
    assert "x is object" in refusal(save(x=bombs, y=[0, 1]))
    assert not canary.exists()
    with np.load(tmp_path / "set.npz", allow_pickle=True) as arrays:
        assert arrays["x"].shape == (2, 4, 4)
    assert canary.exists()  # the bomb was a real one


def test_damaged_files(tmp_path: Path, save: Save) -> None:
    assert "cannot be read (No such file" in refusal(tmp_path / "none.npz")
    path = save(x=images(50, 20, 20), y=[0, 1] * 25)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    assert "is no readable .npz" in refusal(path)
    path.write_bytes(b"PK not at all")
    assert "is no readable .npz" in refusal(path)


def test_planning_reads_no_images_and_stored_ones_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    np.savez(path, x=np.zeros((3000, 100, 100), np.uint8), y=np.arange(3000) % 2)  # 30 MB
    tracemalloc.start()
    source = open_npz(str(path))
    source.load(2999)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6
    np.savez_compressed(path, x=np.zeros((3000, 100, 100), np.uint8), y=np.arange(3000) % 2)
    tracemalloc.start()
    open_npz(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_the_fingerprint_goes_by_content(save: Save, tmp_path: Path) -> None:
    x = images(4, 5, 5)
    before = open_npz(str(save(x=x, y=[0, 1, 0, 1])), digests=tmp_path / "memory").fingerprint
    moved = (tmp_path / "set.npz").rename(tmp_path / "moved.npz")
    assert open_npz(str(moved)).fingerprint == before
    time.sleep(0.01)
    x[3, 4, 4] ^= 1
    assert open_npz(str(save(x=x, y=[0, 1, 0, 1])), digests=tmp_path / "memory").fingerprint != before


def test_it_reaches_worker_processes(save: Save) -> None:
    source = open_npz(str(save(x=images(4, 5, 5), y=[0, 1, 0, 1])))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.load(3), source.load(3))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).load(3), source.load(3))  # after it was read


def test_the_digits_of_two_post_offices(shared_data: Path) -> None:
    path = shared_data / "digits_mnist_usps" / "usps.npz"
    source, arrays = open_npz(str(path)), np.load(path)
    assert source.classes == tuple("0123456789")
    assert [item.label for item in source.items] == [*arrays["y_train"], *arrays["y_test"]]
    assert np.array_equal(np.asarray(source.load(7291 + 5))[..., 0], arrays["x_test"][5])
