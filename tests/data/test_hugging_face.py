"""Datasets of the library datasets: from a folder, from the cache of the hub, and without network."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hub_stub import COMMIT, hub
from tl_experiments.config import compose
from tl_experiments.data.broken import bad_images, without_bad
from tl_experiments.data.hugging_face import Reading, open_hugging_face
from tl_experiments.data.sources import open_source
from tl_experiments.errors import DataError

library = pytest.importorskip("datasets", reason="the library datasets is not installed")
RNG = np.random.default_rng(0)
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Not the user's."""
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def png(*shape: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape or (5, 6, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def part(labels: list[Any], feature: Any = None, **columns: Any) -> Any:
    """A split with a random picture for each label."""
    pictures = [{"bytes": png(), "path": None} for _ in labels]
    features = {"image": library.Image(), "label": feature or library.ClassLabel(names=["cat", "dog"])}
    features |= {name: library.Value("string") for name in columns}
    content = {"image": pictures, "label": labels, **columns}
    return library.Dataset.from_dict(content, features=library.Features(features))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Parquet files as the hub has them: ``write(train=part([0, 1]), validation=...)``."""

    def make(**splits: Any) -> Path:
        folder = tmp_path / "pets"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            split.to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))
        return folder

    return make


def refusal(repo: Path | str, **reading: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_hugging_face(str(repo), Reading(**reading))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_parquet_files(write: Write, tmp_path: Path) -> None:
    splits = {"train": part([1, 0, 1]), "validation": part([0]), "test": part([1, 1])}
    folder = write(**splits)
    config = compose(["dataset=hugging_face", f"dataset.repo={folder}"]).dataset
    source = open_source(config, tmp_path / "memory")
    assert source.classes == ("cat", "dog")
    assert [(item.id, item.label, item.split) for item in source.items] == [
        ("train/00000", 1, "train"),
        ("train/00001", 0, "train"),
        ("train/00002", 1, "train"),
        ("val/00000", 0, "val"),
        ("test/00000", 1, "test"),
        ("test/00001", 1, "test"),
    ]
    expected = [row["image"] for split in splits.values() for row in split]  # decoded by the library
    for index, image in enumerate(expected):
        assert np.array_equal(np.asarray(source.load(index)), np.asarray(image))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.load(5)), np.asarray(expected[5]))


def test_the_fingerprint_goes_by_the_files(write: Write, tmp_path: Path) -> None:
    folder = write(train=part([1, 0]))
    before = open_hugging_face(str(folder), Reading()).fingerprint
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert open_hugging_face(str(moved), Reading()).fingerprint == before
    write(train=part([1, 0]))
    assert open_hugging_face(str(folder), Reading()).fingerprint != before


def test_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/dog/1", "test/dog/2"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png())
    source = open_hugging_face(str(tmp_path / "photos"), Reading())
    assert [(item.id, source.classes[item.label]) for item in source.items] == [
        ("train/00000", "cat"),
        ("train/00001", "dog"),
        ("test/00000", "dog"),
    ]
    assert np.array_equal(source.load(2), np.asarray(Image.open(tmp_path / "photos" / "test" / "dog" / "2.png")))


def test_what_save_to_disk_has_written(tmp_path: Path) -> None:
    library.DatasetDict({"train": part([1, 0]), "test": part([1])}).save_to_disk(str(tmp_path / "dict"))
    part([1, 0, 1]).save_to_disk(str(tmp_path / "one"))
    both = open_hugging_face(str(tmp_path / "dict"), Reading())
    assert [item.split for item in both.items] == ["train", "train", "test"]
    assert len(open_hugging_face(str(tmp_path / "one"), Reading()).items) == 3


@pytest.mark.parametrize(
    ("labels", "dtype", "classes"),
    [([10, 2, 2], "int64", ("2", "10")), (["b", "a", "b"], "string", ("a", "b"))],
)
def test_labels_that_have_no_names(write: Write, labels: list[Any], dtype: str, classes: tuple[str, ...]) -> None:
    source = open_hugging_face(str(write(train=part(labels, library.Value(dtype)))), Reading())
    assert source.classes == classes
    assert [source.classes[item.label] for item in source.items] == [str(label) for label in labels]


def test_splits_and_columns_by_name(write: Write) -> None:
    folder = write(train=part([1, 0]), extra=part([1, 1], kind=["x", "y"]).remove_columns("kind"), holdout=part([0]))
    source = open_hugging_face(str(folder), Reading(splits={"train": "train", "test": "holdout"}))
    assert [item.id for item in source.items] == ["train/00000", "train/00001", "test/00000"]
    assert source.notes == ("Splits that are not used: extra.",)
    folder = write(train=part(["b", "a"], library.Value("string"), breed=["x", "y"]))
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    write(train=part([1, 0], breed=["x", "y"]))
    assert open_hugging_face(str(folder), Reading(label_column="breed")).classes == ("x", "y")


def test_grey_images_are_loaded_as_colour(write: Write) -> None:
    split = part([0, 1])
    stored = {"image": [{"bytes": png(4, 4), "path": None}] * 2, "label": [0, 1]}
    folder = write(train=library.Dataset.from_dict(stored, features=split.features))
    assert open_hugging_face(str(folder), Reading()).load(0).mode == "RGB"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("split", "reading", "message"),
    [
        (
            [0, 1],
            {"label_column": "kind"},
            r"'kind' is no column of labels; it has image, label -> give dataset.label_",
        ),
        ([0, 1], {"image_column": "label"}, r"'label' is no column of images; it has image, label"),
        ([0, 1], {"splits": {"train": "all"}}, r"dataset.splits: no split all, it has train -> "),
        ([0, 1], {"splits": {"test": "train"}}, r"has train, expected train -> say which is train"),
        ([0, None], {}, r"train row 1 has label None, expected a class -> leave that split out"),
        ([0, -1], {}, r"train row 1 has label -1, expected a class"),
    ],
)
def test_refusals(write: Write, split: list[Any], reading: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(write(train=part(split)), **reading))


def test_several_labels_an_image(write: Write) -> None:
    folder = write(train=part([[0], [0, 1]], library.Sequence(library.Value("int64"))))
    assert "column label holds " in refusal(folder)
    assert "expected one class an image" in refusal(folder)


def test_a_class_that_train_lacks(write: Write) -> None:
    folder = write(train=part(["a", "b"], library.Value("string")), test=part(["c"], library.Value("string")))
    assert "test row 0 is of 'c', expected a class of train: a, b" in refusal(folder)


def test_broken_and_huge_images_are_named_or_left_out(write: Write, tmp_path: Path) -> None:
    split = part([0, 1, 0, 1])
    stored = [{"bytes": data, "path": None} for data in (png()[:60], png(50, 40, 3), png(4, 4), png(4, 4))]
    folder = write(train=library.Dataset.from_dict({"image": stored, "label": [0, 1, 0, 1]}, features=split.features))
    source = open_hugging_face(str(folder), Reading(), 1999, tmp_path / "memory")
    with pytest.raises(DataError, match=r"pets train/00000: cannot be decoded"):
        source.load(0)
    with pytest.raises(DataError, match=r"pets train/00001: .*2,000 pixels, dataset.max_pixels is 1,999"):
        source.load(1)
    assert [one.path for one in bad_images(source)] == [f"{folder} train/00000", f"{folder} train/00001"]
    left = without_bad(source)
    assert [item.id for item in left.items] == ["train/00002", "train/00003"]
    assert left.load(1) == source.load(3)


def test_no_folder_and_no_name(tmp_path: Path) -> None:
    assert "is no folder and no name of the hub -> give owner/name" in refusal(tmp_path / "none")
    assert "csv is no folder and no name of the hub" in refusal("csv")  # the library's own modules are none either
    (tmp_path / "empty").mkdir()
    assert "cannot be read as a dataset" in refusal(tmp_path / "empty")


@pytest.fixture
def cached(write: Write, own_cache: Path) -> Path:
    """The library's cache as it stands after a dataset was fetched from the hub."""
    folder = write(train=part([1, 0, 1]), validation=part([0]))
    library.load_dataset(str(folder))
    (made,) = own_cache.glob("*/*/*/*/dataset_info.json")
    shutil.copytree(made.parent, own_cache / "owner___pets" / "default" / "0.0.0" / COMMIT)
    return own_cache


def test_the_cache_serves_without_network(cached: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    source = open_hugging_face("owner/pets", Reading())
    assert [item.id for item in source.items] == ["train/00000", "train/00001", "train/00002", "val/00000"]
    assert source.notes == (f"owner/pets of the Hugging Face hub at commit {COMMIT}.",)
    pinned = open_hugging_face("owner/pets", Reading(revision=COMMIT))
    assert pinned.fingerprint == source.fingerprint
    other = cached / "owner___pets" / "default" / "0.0.0" / COMMIT
    other.rename(other.with_name(COMMIT[::-1]))
    assert open_hugging_face("owner/pets", Reading()).fingerprint != source.fingerprint
    assert f"at commit {COMMIT[::-1]}, no other, and cannot" in refusal("owner/pets", revision=COMMIT)
    assert "no other, and cannot be fetched (HF_HUB_OFFLINE is set)" in refusal("owner/pets", revision="main")


OPEN = """
import json, sys, time
from tl_experiments.data.hugging_face import Reading, open_hugging_face, _import_datasets
_import_datasets()  # takes seconds, with or without a network
for repo, options in json.loads(sys.argv[1]):
    started = time.perf_counter()
    try:
        source = open_hugging_face(repo, Reading(**options))
        print("ok", [item.id for item in source.items], *source.notes, source.load(1).size, sep="|")
    except Exception as error:
        print(type(error).__name__, error, f"{time.perf_counter() - started:.1f}", sep="|")
"""


def opened(tmp_path: Path, environment: dict[str, str], *asked: tuple[str, dict[str, Any]]) -> list[list[str]]:
    """What a process of its own, with an empty cache, says of repositories: the library reads its address once."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), **environment}
    command = [sys.executable, "-c", OPEN, json.dumps(asked)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def test_a_dataset_is_fetched_once_and_its_commit_noted(write: Write, tmp_path: Path) -> None:
    folder = write(train=part([1, 0, 1]), validation=part([0]))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    asked = [("owner/pets", {}), ("owner/pets", {"revision": COMMIT}), ("owner/pets", {"revision": "v1"})]
    with hub(folder) as (address, requests):
        answers = opened(
            tmp_path, {"HF_ENDPOINT": address}, *asked, ("owner/none", {}), ("owner/pets", {"revision": "v9"})
        )
    ids = str(["train/00000", "train/00001", "train/00002", "val/00000"])
    for answer in answers[:3]:
        assert answer == ["ok", ids, f"owner/pets of the Hugging Face hub at commit {COMMIT}.", "(6, 5)"]
    assert answers[3][1].startswith("dataset.repo: the hub has no owner/none to give (")
    assert answers[4][1].startswith("dataset.repo: the hub has no owner/pets to give (")
    assert (
        sum(request.startswith("GET") and request.endswith("train-00000-of-00001.parquet") for request in requests) == 1
    )


def test_code_of_a_dataset_is_never_run(write: Write, tmp_path: Path) -> None:
    folder, canary = write(train=part([1, 0])), tmp_path / "canary"
    (folder / "README.md").write_text("")
    (folder / "pets.py").write_text(f"open({str(canary)!r}, 'w')")
    with hub(folder) as (address, _):
        (answer,) = opened(tmp_path, {"HF_ENDPOINT": address}, ("owner/pets", {}))
    assert answer[1].startswith("dataset.repo: owner/pets cannot be read (Dataset scripts are no longer supported")
    assert "scripts are no longer supported" in refusal(folder)
    assert not canary.exists()


@pytest.mark.parametrize("silent", [True, False], ids=["dead server", "HF_HUB_OFFLINE"])
def test_without_network_the_answer_comes_within_ten_seconds(silent: bool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {"HF_ENDPOINT": address} if silent else {"HF_HUB_OFFLINE": "1"}
        ((kind, text, seconds),) = opened(tmp_path, environment, ("owner/photos", {}))
    assert kind == "DataError"
    reason = "timed out|no answer" if silent else "HF_HUB_OFFLINE is set"
    pattern = (
        rf"dataset.repo: owner/photos is not on this disk, and cannot be fetched \(.*({reason}).*\) -> fetch it with"
    )
    assert re.search(pattern, text)
    assert float(seconds) < 10


def test_it_can_be_imported_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal(tmp_path) == (
        "dataset=hugging_face: the library datasets is missing (datasets) -> pip install 'tl-experiments[huggingface]'"
    )
