"""``tl evaluate``: on its own data the record's numbers, on other data classes by name."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, recall_score

from tests.inference.conftest import RUNS
from tl_experiments import RunRecord, load_model
from tl_experiments.errors import ConfigError, DataError
from tl_experiments.inference.dataset import chosen_dataset, label_map
from tl_experiments.inference.evaluation import evaluate
from tl_experiments.metrics.stored import read_predictions


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run of one's own, to write into."""

    def copy(name):
        return shutil.copytree(finished(name), tmp_path / "run")

    return copy


def result(folder):
    (found,) = folder.glob("evaluations/*/evaluation.json")
    return json.loads(found.read_text()), read_predictions(found.parent), found.parent


@pytest.mark.parametrize(("name", "split"), [*((name, "test") for name in RUNS), ("full", "val"), ("vit", "val")])
def test_its_own_dataset_gives_the_metrics_of_the_record(copied, name, split):
    folder = copied(name)
    record = RunRecord.read(folder)
    dataset = chosen_dataset(record.config, [])
    evaluation = evaluate(folder, load_model(folder, "cpu"), dataset, split=split)
    assert evaluation.metrics == pytest.approx(record.metrics[split], abs=1e-6)
    stored = read_predictions(folder)[split]
    assert evaluation.predictions.items == stored.items
    np.testing.assert_allclose(evaluation.predictions.probabilities, stored.probabilities, atol=1e-6)
    assert result(folder)[0]["metrics"] == evaluation.metrics


@pytest.fixture
def photos(tmp_path):
    """``photos({"test": {"cat": 3}})``: a folder of images, by split and class."""

    def make(content):
        rng = np.random.default_rng(1)
        for split, classes in content.items():
            for name, n in classes.items():
                (tmp_path / "photos" / split / name).mkdir(parents=True)
                for number in range(n):
                    pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
        return ["dataset=image_folder", f"dataset.root={tmp_path / 'photos'}"]

    return make


def test_some_of_the_classes_in_another_order(copied, photos, tl):
    """A dataset with classes 7, 3 and nine (= 9): its labels 0, 1, 2 are other labels of the model."""
    folder = copied("full")
    classes = {"7": 5, "3": 4, "nine": 3}
    dataset = photos({"train": classes, "val": classes, "test": classes})
    code, out, err = tl("evaluate", folder, *dataset, "--map", "nine=9", "--device", "cpu")
    assert code == 0, err
    assert "note: 7 of the model's 10 classes have no image here and are in no mean.\n" in err
    content, predictions, where = result(folder)
    assert out.endswith(f"written: {where}\n")
    assert where.name.startswith("photos-test-")
    names = ["3"] * 4 + ["7"] * 5 + ["9"] * 3
    (only,) = predictions.values()
    truth, p = np.array([int(name) for name in names]), only.probabilities
    assert [only.classes[label] for label in only.labels] == names
    guess = p.argmax(1)
    present = [3, 7, 9]
    assert content["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    macro = f1_score(truth, guess, labels=present, average="macro", zero_division=0)
    assert content["metrics"]["macro_f1"] == pytest.approx(macro)
    assert content["metrics"]["nll"] == pytest.approx(log_loss(truth, p, labels=range(10)))
    assert content["confusion"] == confusion_matrix(truth, guess, labels=range(10)).tolist()
    recall = content["per_class"]["recall"]
    assert [recall[label] for label in present] == pytest.approx(
        recall_score(truth, guess, labels=present, average=None)
    )
    assert [label for label, value in enumerate(recall) if value is None] == [0, 1, 2, 4, 5, 6, 8]
    assert not any(math.isnan(value) for value in content["metrics"].values())


def test_the_same_again_replaces_its_own_result_only(copied, tl):
    folder = copied("linear")
    for arguments in ([], [], ["--split", "all"], ["dataset.split_seed=1"]):
        assert tl("evaluate", folder, *arguments, "--device", "cpu")[0] == 0
    images = {path.parent.name: json.loads(path.read_text())["images"] for path in folder.glob("evaluations/*/*.json")}
    assert sorted(images.values()) == [359, 359, 1797]


def test_the_runs_own_dataset_at_another_place(tiny, photos, tmp_path, tl):
    from tl_experiments import run

    dataset = photos({"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}, "test": {"a": 3, "b": 3}})
    cfg = tiny(*dataset, "dataset.val_fraction=0.3")
    run(cfg, tmp_path / "run")
    (tmp_path / "photos").rename(tmp_path / "moved")
    code, _, err = tl("evaluate", tmp_path / "run")
    assert (code, err.splitlines()[-1].startswith("error: dataset.root: ")) == (2, True)
    code, _, err = tl("evaluate", tmp_path / "run", f"dataset.root={tmp_path / 'moved'}", "--device", "cpu")
    assert code == 0, err
    content, _, _ = result(tmp_path / "run")
    assert content["dataset"]["val_fraction"] == 0.3  # of the run, not of the defaults
    assert content["metrics"] == pytest.approx(RunRecord.read(tmp_path / "run").metrics["test"], abs=1e-6)


def test_a_run_with_a_relative_root_is_evaluated_and_shown_from_anywhere(tiny, photos, tmp_path, tl, monkeypatch):
    from tl_experiments import run
    from tl_experiments.analysis.runs import FinishedRun
    from tl_experiments.commands.comparing import _pictures
    from tl_experiments.training.identity import job_id

    (_, absolute) = photos({"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}, "test": {"a": 3, "b": 3}})
    cfg = tiny("dataset=image_folder", "dataset.root=photos")
    run(cfg, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record = RunRecord.read(tmp_path / "run")
    assert record.config["dataset"]["root"] == "photos"
    assert record.data["location"] == {"root": str(tmp_path / "photos")}
    assert record.job_id == job_id(tiny("dataset=image_folder", absolute))
    code, _, err = tl("evaluate", tmp_path / "run", "--device", "cpu")
    assert code == 0, err
    assert result(tmp_path / "run")[0]["metrics"] == pytest.approx(record.metrics["test"], abs=1e-6)
    items = read_predictions(tmp_path / "run")["test"].items
    shown = _pictures(FinishedRun(record, tmp_path / "run"), items)
    assert list(shown) == list(items)


@pytest.fixture
def unsplit(tmp_path):
    """``unsplit("new", {"7": 9})``: a folder of images, by class alone."""

    def make(folder, classes, first=0):
        rng = np.random.default_rng(first)
        for name, n in classes.items():
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(n):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{number}.png")
        return ["dataset=image_folder", f"dataset.root={tmp_path / folder}"]

    return make


@pytest.mark.parametrize(
    ("arguments", "split", "images"),
    [
        ([], "all", 11),
        (["--split", "test"], "test", 2),
        (["dataset.folds=2"], "test", 6),
        (["--split", "val"], "val", 2),
    ],
)
def test_of_new_images_without_splits_all_are_evaluated(copied, unsplit, tl, arguments, split, images):
    folder = copied("linear")
    code, _, err = tl("evaluate", folder, *unsplit("new", {"7": 6, "3": 5}), *arguments, "--device", "cpu")
    assert code == 0, err
    content, _, where = result(folder)
    assert (content["split"], content["images"]) == (split, images)
    assert f"-{split}-" in where.name
    said = "note: The dataset is not the run's own and comes without splits: all its images are evaluated.\n"
    assert (said in err) is (split == "all")


def test_too_few_images_to_be_divided_are_evaluated_all_the_same(copied, unsplit, tl):
    folder = copied("linear")
    code, _, err = tl("evaluate", folder, *unsplit("new", {"7": 1, "3": 1}), "--device", "cpu")
    assert code == 0, err
    assert result(folder)[0]["images"] == 2


def test_of_its_own_images_without_splits_it_is_the_test_split_wherever_they_are(tiny, unsplit, tmp_path, tl):
    """To evaluate all of them would be to evaluate what it was trained on."""
    from tl_experiments import run

    own = unsplit("photos", {"a": 10, "b": 10})
    run(tiny(*own, "dataset.test_fraction=0.3"), tmp_path / "run")
    same = [*own, "dataset.split_seed=0"]
    moved = ["dataset=image_folder", f"dataset.root={tmp_path / 'moved'}"]
    shutil.copytree(tmp_path / "photos", tmp_path / "moved")
    for arguments, images in (([], 6), (same, 4), (moved, 4), ([moved[1]], 6)):
        assert tl("evaluate", tmp_path / "run", *arguments, "--device", "cpu")[0] == 0
        content, _, where = result(tmp_path / "run")
        assert (content["split"], content["images"]) == ("test", images), arguments
        shutil.rmtree(where.parent)
    others = unsplit("others", {"a": 10, "b": 10}, first=1)  # as many, under the same names
    assert tl("evaluate", tmp_path / "run", others[1], "--device", "cpu")[0] == 0
    assert result(tmp_path / "run")[0]["images"] == 20


def test_a_further_test_set_is_a_split_of_its_own(copied, photos, tl, tmp_path):
    """It is in the record's config, or given with the command; ``all`` leaves it out."""
    folder = copied("full")
    photos({"test": {"7": 4, "3": 2}})
    extra = f"dataset.tests.new={tmp_path / 'photos'}"
    code, _, err = tl("evaluate", folder, extra, "--split", "test/new", "--device", "cpu")
    assert code == 0, err
    content, predictions, _ = result(folder)
    assert (content["images"], content["split"], set(predictions)) == (6, "test/new", {"test/new"})
    assert predictions["test/new"].labels.tolist() == [3, 3, 7, 7, 7, 7]
    shutil.rmtree(folder / "evaluations")
    assert tl("evaluate", folder, extra, "--split", "all", "--device", "cpu")[0] == 0
    assert result(folder)[0]["images"] == 1797


def test_an_image_that_cannot_be_read_is_an_error(copied, photos, tl, tmp_path):
    classes = {"7": 3, "3": 3}
    dataset = photos({"train": classes, "val": classes, "test": classes})
    (tmp_path / "photos" / "test" / "7" / "1.png").write_bytes(b"")
    folder = copied("linear")
    code, _, err = tl("evaluate", folder, *dataset, "--device", "cpu")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'photos' / 'test' / '7' / '1.png'}: cannot be decoded")
    assert not (folder / "evaluations").exists()


@pytest.mark.parametrize(
    ("theirs", "renamed", "error", "message"),
    [
        (
            ["cat", "wolf"],
            {},
            DataError,
            r"1 classes that the model does not know: wolf; it knows cat, dog -> --map wo",
        ),
        (["cat", "wolf"], {"wolff": "dog"}, ConfigError, r"--map: the dataset has no class wolff \(cat, wolf\) -> "),
        (["cat", "wolf"], {"wolf": "dgo"}, ConfigError, r"--map: the model has no class dgo \(cat, dog\) -> "),
    ],
)
def test_classes_that_are_not_there(theirs, renamed, error, message):
    with pytest.raises(error, match=message):
        label_map(theirs, ["cat", "dog"], renamed)


def test_labels_go_by_name():
    assert label_map(["dog", "cat"], ["cat", "dog", "emu"], {}) == [1, 0]
    assert label_map(["puppy", "dog", "cat"], ["cat", "dog"], {"puppy": "dog"}) == [1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        (["dataset.shotss=3"], "error: dataset.shotss: unknown key -> did you mean dataset.shots?"),
        (["dataset.shots=0"], "error: dataset.shots: got 0, expected 1 or more"),
        (["dataset=digit"], "error: dataset: unknown choice 'digit' -> did you mean digits?"),
        (["trainer.max_epochs=3"], "error: trainer.max_epochs=3: no option of the dataset -> "),
        (["photos"], "error: photos: no option of the dataset -> dataset=<name> or "),
        (["--map", "x"], "error: tl evaluate: argument --map: got 'x', expected <class of the dataset>=<class of"),
        (["--split", "tset"], "error: --split: the dataset has no split tset -> choose one of train, val, test, all"),
        (
            ["dataset=image_folder", "dataset.root=x", "dataset.channels=1"],
            "error: dataset.channels: 1, the model takes",
        ),
    ],
)
def test_arguments_that_cannot_be(tl, finished, arguments, last_line):
    code, out, err = tl("evaluate", finished("linear"), *arguments, "--device", "cpu")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(last_line)
