"""What a dataset does to the names of jobs, arms and trials; results of data that is no more pass for nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_experiments.analysis.arms import trial_key
from tl_experiments.config import compose
from tl_experiments.errors import ConfigError, DataError
from tl_experiments.sweeps.costs import CostBook
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.planner import costs_file, make_plan, undecoded
from tl_experiments.sweeps.tasks import Task
from tl_experiments.training.identity import arm, job_id
from tl_experiments.training.preflight import check_data, check_unchanged
from tl_experiments.training.run import run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """``home/photos/0.png`` to ``11.png``, a table of them, and the same as arrays; ``link`` leads to ``home``."""
    folder = tmp_path / "home"
    (folder / "photos").mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "photos" / f"{number}.png")
    rows = [f"{number}.png,{('ant', 'bee')[number % 2]}" for number in range(12)]
    (folder / "photos" / "labels.csv").write_text("\n".join(["path,label", *rows]))
    np.savez(folder / "arrays.npz", x=images, y=np.arange(12) % 2)
    (tmp_path / "link").symlink_to(folder)
    return folder


def options(kind: str, home: Path) -> list[str]:
    return {
        "csv": ["dataset=csv", f"dataset.path={home / 'photos' / 'labels.csv'}"],
        "npz": ["dataset=npz", f"dataset.path={home / 'arrays.npz'}"],
        "eurosat": ["dataset=eurosat", f"dataset.root={home}"],
        "hugging_face": ["dataset=hugging_face", f"dataset.repo={home / 'photos'}"],
    }[kind]


@pytest.mark.parametrize("kind", ["csv", "npz", "eurosat", "hugging_face"])
def test_two_ways_to_a_place_are_one_job_and_two_places_are_two(
    kind: str, home: Path, tmp_path: Path, monkeypatch
) -> None:
    there = job_id(compose(options(kind, home)))
    assert job_id(compose(options(kind, tmp_path / "link"))) == there
    monkeypatch.setenv("TL_TEST_HOME", str(home))
    assert job_id(compose([text.replace(str(home), "$TL_TEST_HOME") for text in options(kind, home)])) == there
    shutil.copytree(home, tmp_path / "other")
    assert job_id(compose(options(kind, tmp_path / "other"))) != there


def test_what_changes_no_result_changes_no_job(home: Path) -> None:
    photos = home / "photos"
    assert job_id(compose([*options("csv", home), f"dataset.root={photos}"])) == job_id(compose(options("csv", home)))
    assert job_id(compose(["dataset=dtd", "dataset.download=true"])) == job_id(compose(["dataset=dtd"]))
    assert job_id(compose(["dataset=dtd"])) != job_id(compose(["dataset=food101"]))


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["dataset=csv", "dataset.path=x/birds.csv"], "birds"),
        (["dataset=csv", "dataset.path=x/birds.csv", "dataset.channels=1"], "birds (1 channel)"),
        (["dataset=npz", "dataset.path=pathmnist.npz", "dataset.shots=5"], "pathmnist, 5 shots"),
        (["dataset=cifar10"], "cifar10"),
        (["dataset=hugging_face", "dataset.repo=owner/name"], "owner/name"),
        (["dataset=hugging_face", "dataset.repo=owner/name", "dataset.config_name=v2"], "owner/name (v2)"),
    ],
)
def test_labels(overrides: list[str], label: str) -> None:
    assert arm(compose(overrides))["dataset"] == label


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_moved_data_is_the_same_trial_with_the_same_result(kind: str, home: Path, tmp_path: Path, tiny) -> None:
    fast = ["dataset.shots=null", "trainer.max_epochs=1"]
    first = run(tiny(*options(kind, home), *fast), tmp_path / "first")
    home.rename(tmp_path / "elsewhere")
    second = run(tiny(*options(kind, tmp_path / "elsewhere"), *fast), tmp_path / "second")
    assert trial_key(second) == trial_key(first)
    assert second.data["fingerprint"] == first.data["fingerprint"]
    assert second.metrics == first.metrics


def test_a_table_over_a_folder_gives_the_results_of_the_folder(home: Path, tmp_path: Path, tiny) -> None:
    root = tmp_path / "classes"
    rows = []
    for number in range(12):
        path = root / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / "photos" / f"{number}.png", path)
        rows.append(f"{path.parent.name}/{path.name},{path.parent.name}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *reversed(rows)]))
    same = ["dataset.shots=null", "trainer.max_epochs=3", "freeze_strategy=full", "augmentation=flip_crop"]
    runs = [
        run(tiny(*one, *same), tmp_path / name)
        for name, one in {
            "folder": ["dataset=image_folder", f"dataset.root={root}"],
            "table": ["dataset=csv", f"dataset.path={tmp_path / 't.csv'}", f"dataset.root={root}"],
        }.items()
    ]
    assert runs[0].metrics == runs[1].metrics
    assert runs[0].data["fingerprint"] == runs[1].data["fingerprint"]
    losses = [
        [json.loads(line).get("train_loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("folder", "table")
    ]
    assert losses[0] == losses[1]
    assert len(set(losses[0]) - {None}) > 1


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_other_contents_under_the_old_names_are_told(kind: str, home: Path, tmp_path: Path, tiny) -> None:
    config = tiny(*options(kind, home), "dataset.shots=null", "trainer.max_epochs=1")
    record = run(config, tmp_path / "run")
    check_unchanged([(config, record)])
    if kind == "csv":
        table = home / "photos" / "labels.csv"
        table.write_text(table.read_text().replace("0.png,ant", "0.png,bee"))
    else:
        arrays = dict(np.load(home / "arrays.npz"))
        np.savez(home / "arrays.npz", **{**arrays, "x": 255 - arrays["x"]})
    with pytest.raises(DataError, match=rf"{home}.*its images changed since job {record.job_id} ran"):
        check_unchanged([(config, record)])


@pytest.mark.parametrize(("kind", "decoded"), [("csv", 12), ("npz", 0)])
def test_plans_count_what_is_decoded_from_files(kind: str, decoded: int, home: Path, tiny) -> None:
    config = tiny(*options(kind, home), "dataset.shots=null")
    task, book = Task((Job(job_id(config), (), config),)), CostBook(costs_file(config), "cpu", 1)
    assert make_plan([task], check_data([config], home), book, 1).total.decoded == decoded
    assert len(undecoded([task], book)) == bool(decoded)


def test_mappings_and_lists_are_given_as_the_files_say() -> None:
    hub = ["dataset=hugging_face", "dataset.repo=owner/name"]
    assert compose([*hub, "dataset.splits={train: train, val: dev}"]).dataset.splits == {"train": "train", "val": "dev"}
    assert compose([*hub, "dataset.splits.test=holdout"]).dataset.splits == {"test": "holdout"}
    assert compose(["dataset=csv", "dataset.path=a.csv", "dataset.classes=[a,b,3]"]).dataset.classes == ("a", "b", "3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=csv"], "dataset.path: no table given"),
        (["dataset=npz"], "dataset.path: no file given"),
        (["dataset=hugging_face"], "dataset.repo: no dataset given"),
        (["dataset=hugging_face", "dataset.repo=a/b", "dataset.splits={dev: dev}"], "dataset.splits: got dev"),
        (["dataset=cifar10", "dataset.channels=1"], "dataset.channels"),
    ],
)
def test_refusals(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides)
