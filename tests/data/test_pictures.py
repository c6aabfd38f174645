"""Small pictures of single images, made without torch."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import TINY
from tl_experiments.config import compose
from tl_experiments.data.pictures import SIDE, pictures

COLOURS = {"a": (200, 30, 30), "b": (30, 30, 200)}


def config(*overrides):
    """As a record has it: plain values."""
    return json.loads(json.dumps(dataclasses.asdict(compose([*TINY, *overrides]))))


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (400, 200), colour).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def of_photos(photos):
    return lambda items, *overrides: pictures(
        config("dataset=image_folder", f"dataset.root={photos}", *overrides), items
    )


def test_photos_are_shrunk(of_photos):
    found = of_photos(["test/b/1.png", "test/a/0.png"])
    assert list(found) == ["test/b/1.png", "test/a/0.png"]
    for item, data in found.items():
        picture = opened(data)
        assert (picture.format, picture.size) == ("JPEG", (SIDE, SIDE // 2))
        np.testing.assert_allclose(picture.getpixel((80, 40)), COLOURS[item[5]], atol=4)  # JPEG's loss
        assert len(data) < 5_000


def test_what_is_missing_or_damaged_is_absent(of_photos, photos):
    (photos / "test/a/0.png").write_bytes((photos / "test/a/0.png").read_bytes()[:60])
    assert list(of_photos(["test/a/0.png", "test/a/9.png", "test/a/1.png"])) == ["test/a/1.png"]


def test_a_dataset_that_is_gone_gives_none(photos, tmp_path):
    assert pictures(config("dataset=image_folder", f"dataset.root={tmp_path / 'moved'}"), ["test/a/0.png"]) == {}


def test_a_config_of_another_version_gives_none():
    assert pictures({"dataset": {"name": "of the future"}}, ["x"]) == {}


def test_small_images_are_enlarged_and_stay_sharp():
    picture = opened(pictures(config(), ["digits/0"])["digits/0"])
    assert (picture.format, picture.size) == ("PNG", (SIDE, SIDE))
    cells = np.asarray(picture.convert("L")).reshape(8, SIDE // 8, 8, SIDE // 8)
    assert (cells == cells[:, :1, :, :1]).all()
    np.testing.assert_array_equal(cells[:, 0, :, 0], np.rint(load_digits().images[0] * 255 / 16))


def test_transparency_is_laid_on_white(photos, of_photos):
    Image.new("RGBA", (100, 100), (10, 200, 10, 0)).save(photos / "test/a/0.png")
    picture = opened(of_photos(["test/a/0.png"], "dataset.channels=4")["test/a/0.png"])
    assert picture.mode == "RGB"
    assert min(picture.getpixel((50, 50))) > 250


@pytest.mark.parametrize(("channels", "mode"), [(2, "L"), (5, "RGB")])
def test_of_many_channels_the_first_are_shown(tmp_path, channels, mode):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        array = np.zeros((60, 60, channels), np.uint8)
        array[..., 0] = 200
        np.save(tmp_path / "train" / name / "0.npy", array)
    item = "train/a/0.npy"
    given = config("dataset=image_folder", f"dataset.root={tmp_path}", f"dataset.channels={channels}")
    picture = opened(pictures(given, [item])[item])
    assert picture.mode == mode
    assert np.asarray(picture).reshape(60, 60, -1)[..., 0].mean() == pytest.approx(200, abs=3)


def test_torch_is_not_imported():
    code = "import sys, tl_experiments.data.pictures; print({'torch', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
