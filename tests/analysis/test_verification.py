"""Every number of a record is computed again from the stored predictions, and one that differs is an error."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from tl_experiments.analysis import compare, evidence
from tl_experiments.errors import UserError
from tl_experiments.metrics.stored import read_predictions

ARMS = {"full": 0.95, "from_scratch": 0.8}


@pytest.fixture
def sweep(tmp_path, make_sweep, store_sweep):
    return store_sweep(tmp_path / "sweep", make_sweep(ARMS, seeds=range(3)))


def change_metric(folder, split, name, change):
    path = folder / "record.json"
    record = json.loads(path.read_text())
    record["metrics"][split][name] += change
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "nll", "calibration_error", "auroc"])
def test_a_number_that_was_changed_is_named_with_both_values(sweep, split, name):
    job = sweep / "job002"
    was = json.loads((job / "record.json").read_text())["metrics"][split][name]
    change_metric(job, split, name, 2e-6)
    with pytest.raises(UserError) as error:
        compare(sweep)
    said = str(error.value)
    assert said.startswith(
        f"{job}: {split} {name} is {was + 2e-6:.9g} in record.json, {was:.9g} by predictions.parquet -> "
    )
    assert "\n" not in said
    assert not (sweep / "comparison").exists()


def test_what_float32_rounded_is_no_difference(sweep):
    for split in ("val", "test"):
        change_metric(sweep / "job000", split, "accuracy", 4e-7)
    assert compare(sweep).unverified == ()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("trial", ["chosen", "other"])
def test_one_edited_prediction_is_found_also_after_the_comparison_was_made(
    tmp_path, make_sweep, store_sweep, trial, whole
):
    folder = store_sweep(tmp_path / "sweep", make_sweep({"full": 0.9}, seeds=range(3), factors=(0.3, 1.0)))
    (row,) = compare(folder).rows
    chosen = {run.record.job_id for run in evidence(folder).runs[row.arm]}
    job = next(job for job in sorted(folder.glob("job*")) if (job.name in chosen) == (trial == "chosen"))
    path = job / "predictions.parquet"
    table = pq.read_table(path)
    cells, names = table["probabilities"].to_pylist(), table["prediction"].to_pylist()
    if whole:  # another class, in both columns
        cells[-1], names[-1] = cells[-1][1:] + cells[-1][:1], f"class {(int(names[-1][-1]) - 1) % 3}"
    else:  # the same class, a little less sure
        cells[-1] = [0.9 * p + 0.1 / 3 for p in cells[-1]]
    for name, values in (("probabilities", cells), ("prediction", names)):
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(values, table[name].type))
    pq.write_table(table, path)
    metric = "accuracy" if whole else r"\w+"
    with pytest.raises(
        UserError, match=rf"{job.name}: test {metric} .* in record\.json, .* by predictions\.parquet -> "
    ):
        compare(folder)


def write_sizes(job, **sizes):
    path = job / "record.json"
    record = json.loads(path.read_text())
    record["data"]["sizes"] = sizes
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_of_fewer_images_than_the_record_says_are_found(sweep, split):
    """Also where the metrics of what is left agree with the record."""
    job = sweep / "job001"
    write_sizes(job, **{"train": 20, "val": 60, "test": 60, split: 61})
    with pytest.raises(UserError) as error:
        compare(sweep)
    assert str(error.value).startswith(f"{job}: {split} has 61 images in record.json, 60 in predictions.parquet -> ")
    assert "\n" not in str(error.value)


def test_an_image_that_was_predicted_twice_is_found(sweep):
    job = sweep / "job001"
    table = pq.read_table(job / "predictions.parquet")
    items = table["item"].to_pylist()
    items[-1] = items[-2]
    index = table.column_names.index("item")
    pq.write_table(table.set_column(index, "item", pa.array(items)), job / "predictions.parquet")
    with pytest.raises(UserError) as error:
        compare(sweep)
    assert str(error.value).startswith(f"{job}: test has 60 predictions of 59 images in predictions.parquet -> ")


def test_a_record_that_says_no_size_passes(sweep):
    write_sizes(sweep / "job001", train=20)
    assert compare(sweep).unverified == ()


def test_a_prediction_whose_label_was_edited_is_found(sweep):
    path = sweep / "job001/predictions.parquet"
    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[-1] = next(name for name in labels if name != labels[-1])
    pq.write_table(table.set_column(table.column_names.index("label"), "label", pa.array(labels)), path)
    with pytest.raises(UserError, match=r"job001: test accuracy is"):
        compare(sweep)


@pytest.mark.parametrize("row", [0, -1])
def test_a_predicted_name_that_was_edited_is_found(sweep, row):
    """The column for people: no number is computed from it, and it must say the same."""
    path = sweep / "job001/predictions.parquet"
    table = pq.read_table(path)
    names = table["prediction"].to_pylist()
    was, names[row] = names[row], next(name for name in names if name != names[row])
    pq.write_table(table.set_column(table.column_names.index("prediction"), "prediction", pa.array(names)), path)
    said = rf"job001/predictions\.parquet: 1 predictions .* {names[row]} instead of {was} for .* -> "
    with pytest.raises(UserError, match=said):
        compare(sweep)


def test_a_metric_that_predictions_cannot_give_is_an_error(sweep):
    path = sweep / "job000/record.json"
    record = json.loads(path.read_text())
    record["metrics"]["test"]["invented"] = 0.99
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"test invented is 0\.99 in record\.json, nothing by predictions\.parquet"):
        compare(sweep)


def test_a_further_test_set_is_checked_too(tmp_path, make_sweep, store_sweep):
    folder = store_sweep(tmp_path / "s", make_sweep(ARMS, seeds=range(3)), splits=("val", "test", "test/sketch"))
    (row, _) = compare(folder).rows
    values = [
        accuracy_score(found.labels, found.predicted)
        for run in evidence(folder).runs[row.arm]
        for found in [read_predictions(run.folder)["test/sketch"]]
    ]
    assert row.metrics["test/sketch"]["accuracy"].mean == pytest.approx(np.mean(values))
    assert "sketch accuracy" in (folder / "comparison/table.md").read_text()
    assert "test/sketch_accuracy_low" in (folder / "comparison/table.csv").read_text().splitlines()[0]
    change_metric(folder / "job001", "test/sketch", "nll", 0.1)
    with pytest.raises(UserError, match=r"job001: test/sketch nll is"):
        compare(folder)


def test_runs_without_predictions_are_compared_and_listed(sweep):
    for number in (1, 2, 4, 5):
        (sweep / f"job00{number}/predictions.parquet").unlink()
    comparison = compare(sweep)
    assert comparison.unverified == ("job001", "job002", "job004", "job005")
    assert comparison.warnings[-1] == (
        "4 runs not verified, since their predictions.parquet is missing: job001, job002, job004 and 1 more."
    )
    assert [len(row.seeds) for row in comparison.rows] == [3, 3]
    assert [contrast.images for contrast in comparison.contrasts] == [None]


def test_damaged_predictions_are_an_error(sweep):
    path = sweep / "job003/predictions.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"job003/predictions\.parquet: no readable predictions"):
        compare(sweep)


def test_records_of_before_pass(tmp_path, make_sweep, store_sweep):
    """They have three numbers a split, which torch computed in float32."""
    folder = store_sweep(tmp_path / "sweep", make_sweep(ARMS, seeds=range(3)))
    for path in folder.glob("*/record.json"):
        record = json.loads(path.read_text())
        for split, predictions in read_predictions(path.parent).items():
            p = torch.from_numpy(predictions.probabilities)
            labels = torch.from_numpy(predictions.labels)
            record["metrics"][split] = {
                "accuracy": float(multiclass_accuracy(p.float(), labels, 3, average="micro")),
                "macro_f1": float(multiclass_f1_score(p.float(), labels, 3)),
                "nll": float(torch.nn.functional.nll_loss(p.log(), labels)),
            }
        path.write_text(json.dumps(record))
    comparison = compare(folder)
    assert comparison.unverified == ()
    assert set(comparison.rows[0].metrics["test"]) == {"accuracy", "macro_f1", "nll"}


def test_predictions_that_come_back_are_read(sweep):
    away = sweep.parent / "away"
    shutil.move(sweep / "job000/predictions.parquet", away)
    assert compare(sweep).unverified == ("job000",)
    shutil.move(away, sweep / "job000/predictions.parquet")
    assert compare(sweep).unverified == ()


def test_what_was_verified_is_not_read_again(sweep, monkeypatch):
    compare(sweep)
    verification = sys.modules["tl_experiments.analysis.verification"]
    monkeypatch.setattr(verification, "read_predictions", lambda folder: pytest.fail(f"{folder} was read"))
    compare(sweep)
    os.utime(sweep / "job000/predictions.parquet")
    with pytest.raises(pytest.fail.Exception, match="job000"):
        compare(sweep)


def test_the_evidence_holds_the_chosen_runs_with_what_they_left(sweep):
    found = evidence(sweep)
    assert [arm.freeze_strategy for arm in found.runs] == ["full", "from_scratch"]
    for arm, runs in found.runs.items():
        assert [run.record.seed for run in runs] == [0, 1, 2]
        assert [run.overrides for run in runs] == [(f"seed={seed}",) for seed in range(3)]
        row = next(row for row in found.comparison.rows if row.arm == arm)
        accuracies = [accuracy_score(run.predictions["test"].labels, run.predictions["test"].predicted) for run in runs]
        assert np.mean(accuracies) == pytest.approx(row.test_accuracy.mean)
    assert found.costs == ()


def test_costs_are_those_of_all_sweeps(tmp_path, make_sweep, store_sweep):
    cost = {"jobs": 6, "predicted_s": None, "actual_s": 3.0}
    folders = [
        store_sweep(tmp_path / name, make_sweep({"full": 0.9}, seeds=range(3), sd=sd), plan={"costs": [cost]})
        for name, sd in (("a", 0.01), ("b", 0.02))
    ]
    assert evidence(*map(Path, folders)).costs == (cost, cost)
