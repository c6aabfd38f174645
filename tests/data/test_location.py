"""A run's dataset is found from anywhere."""

from __future__ import annotations

import dataclasses

import pytest

from tests.conftest import TINY
from tl_experiments.config import compose
from tl_experiments.data.location import located, location


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where runs are started: with a folder of photos, another one, and a table; ``elsewhere`` is beside it."""
    for name in ("home/photos", "home/new", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "labels.csv").touch()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def recorded(*overrides):
    """Config and data, as a record has them."""
    cfg = compose([*TINY, *overrides])
    return dataclasses.asdict(cfg), {"location": location(cfg.dataset)}


def test_absolute_paths_of_what_is_there(home):
    folder = ["dataset=image_folder", "dataset.root=photos", "dataset.tests.b=new", "dataset.tests.gone=none"]
    assert recorded(*folder)[1]["location"] == {"root": f"{home}/photos", "tests": {"b": f"{home}/new"}}
    table = ["dataset=csv", "dataset.path=labels.csv"]
    assert recorded(*table)[1]["location"] == {"path": f"{home}/labels.csv"}
    assert recorded(*table, "dataset.root=photos")[1]["location"]["root"] == f"{home}/photos"
    assert recorded("dataset=hugging_face", "dataset.repo=owner/name")[1]["location"] == {}
    assert recorded("dataset=digits")[1]["location"] == {}


@pytest.mark.parametrize("given", ["photos", "$TL_TEST_PHOTOS", "./photos"])
def test_from_elsewhere_it_is_where_it_was(home, monkeypatch, given):
    monkeypatch.setenv("TL_TEST_PHOTOS", str(home / "photos"))
    config, data = recorded("dataset=image_folder", f"dataset.root={given}", "dataset.tests.b=new")
    monkeypatch.chdir(home.parent / "elsewhere")
    monkeypatch.delenv("TL_TEST_PHOTOS")
    (home.parent / "elsewhere" / "photos").mkdir()  # of the same name, and not what the run saw
    found = located(config, data)
    assert found["dataset"] == {**config["dataset"], "root": f"{home}/photos", "tests": {"b": f"{home}/new"}}
    assert found["seed"] == config["seed"]
    assert located(config, {}) == config  # a record of an older version


def test_what_was_moved_is_looked_for_as_it_was_given(home, monkeypatch):
    config, data = recorded("dataset=image_folder", "dataset.root=photos")
    (home / "photos").rename(home.parent / "elsewhere" / "photos")
    monkeypatch.chdir(home.parent / "elsewhere")
    assert located(config, data)["dataset"]["root"] == "photos"


def test_an_absolute_path_that_is_there_stays(home, monkeypatch):
    monkeypatch.setenv("TL_TEST_PHOTOS", str(home / "photos"))
    config, data = recorded("dataset=image_folder", "dataset.root=$TL_TEST_PHOTOS")
    monkeypatch.setenv("TL_TEST_PHOTOS", str(home / "new"))
    assert located(config, data)["dataset"]["root"] == "$TL_TEST_PHOTOS"
