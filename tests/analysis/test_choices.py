"""What the tool chooses does not depend on the labels of the test images: neither in training nor afterwards."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.sweeps.test_sweep import job
from tl_experiments.analysis import compare, evidence
from tl_experiments.analysis.arms import choose_trial
from tl_experiments.config import compose
from tl_experiments.metrics.scores import summary
from tl_experiments.metrics.stored import Predictions, read_predictions
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.sweep import run_sweep
from tl_experiments.sweeps.tuning import stages
from tl_experiments.training.outputs import write_predictions

CLASSES = ("dark", "light", "striped")


def pictures(root, shuffled):
    """30 images a split of three classes; ``shuffled`` gives each test image the folder of another."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        labels = np.arange(30) % 3
        folders = np.random.default_rng(1).permutation(labels) if shuffled and split == "test" else labels
        for number, (label, folder) in enumerate(zip(labels, folders, strict=True)):
            pixels = rng.integers(0, 120, (32, 32, 3)) + (110 if label == 1 else 0)
            if label == 2:
                pixels[::4] = 200
            path = root / split / CLASSES[folder] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def chosen(folder):
    """Arms in order with their settings, the recommended one, and what each chosen run kept."""
    found = evidence(folder)
    kept = [
        [(run.record.seed, run.record.learning_rate, run.record.best_step) for run in runs]
        for runs in found.runs.values()
    ]
    rows = [(row.arm, row.settings, row.recommended, row.val_accuracy, row.max_epochs) for row in found.comparison.rows]
    return rows, kept, found.comparison.verdicts[0].recommended


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """The same sweep of 8 jobs over the same images, with right and with shuffled test labels."""
    folders = []
    for name, shuffled in (("right", False), ("shuffled", True)):
        where = tmp_path_factory.mktemp(name)
        root = pictures(where / "pictures", shuffled)
        of_all = ["dataset=image_folder", f"dataset.root={root}", "dataset.shots=null", "executor.threads_per_job=1"]
        arms = itertools.product(("feature_extraction", "full"), (0.3, 3.0), (0, 1))
        overrides = [
            [f"freeze_strategy={strategy}", f"optimizer.lr_factor={factor}", f"seed={seed}"]
            for strategy, factor, seed in arms
        ]
        jobs = [job(compose([*TINY, f"output_dir={where}", *of_all, *each])) for each in overrides]
        assert run_sweep(jobs, where / "sweep", name).ok == len(jobs)
        folders.append(where / "sweep")
    return folders


def test_sweeps_with_right_and_with_shuffled_test_labels_choose_the_same(sweeps):
    right, shuffled = sweeps
    assert chosen(right) == chosen(shuffled)
    accuracies = [[row.test_accuracy.mean for row in compare(folder).rows] for folder in sweeps]
    assert accuracies[0] != accuracies[1]  # the labels did change


@pytest.mark.parametrize("seed", range(3))
def test_stored_predictions_with_noise_for_test_labels_change_no_choice(sweeps, tmp_path, seed):
    """Records and predictions of a real sweep, each test label drawn anew and the test metrics with it."""
    folder, rng = sweeps[0], np.random.default_rng(seed)
    for path in sorted(folder.glob("*/record.json")):
        record, target = RunRecord.read(path.parent), tmp_path / path.parent.name
        table = pq.read_table(path.parent / "predictions.parquet")
        splits, labels = table["split"].to_pylist(), table["label"].to_pylist()
        noise = [
            str(rng.choice(CLASSES)) if split == "test" else label for split, label in zip(splits, labels, strict=True)
        ]
        target.mkdir()
        index = table.column_names.index("label")
        pq.write_table(table.set_column(index, "label", pa.array(noise)), target / "predictions.parquet")
        metrics = {split: summary(found) for split, found in read_predictions(target).items()}
        assert metrics["val"] == record.metrics["val"]
        dataclasses.replace(record, metrics=metrics).write(target)
    assert chosen(tmp_path) == chosen(folder)


def finish(folder, jobs, make_record, noise):
    """Records with prediction files for jobs that nothing trained; ``noise`` draws the test labels anew."""
    records = {}
    for planned in jobs:
        config = planned.config
        rng = np.random.default_rng(int(planned.id, 16))
        predictions = {}
        for split in ("val", "test"):
            labels = np.arange(30) % 3
            logits = rng.normal(size=(30, 3))
            logits[np.arange(30), labels] += 1.0
            if split == "test" and noise is not None:
                labels = noise.permutation(labels)
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            predictions[split] = Predictions(tuple(f"{split}/{i}" for i in range(30)), labels, p, CLASSES)
        record = make_record(
            config.freeze_strategy.name,
            config.seed,
            settings={"optimizer.lr_factor": config.optimizer.lr_factor, "tuning_seed": config.tuning_seed},
            job_id=planned.id,
            metrics={split: summary(found) for split, found in predictions.items()},
            classes=CLASSES,
            data={"fingerprint": "f", "sizes": {"val": 30, "test": 30}, "labels_spent": 60, "notes": []},
        )
        record.write(folder / planned.id)
        write_predictions(folder / planned.id, predictions)
        records[planned.id] = record
    return records


def test_settings_tuned_on_one_seed_do_not_depend_on_test_labels(tmp_path, make_record):
    """Which trials go on to all seeds, and all that is chosen after, with right test labels and with noise for them."""
    each = itertools.product(("feature_extraction", "full"), (0.3, 1.0, 3.0), (0, 1, 2))
    configs = [
        compose(
            [*TINY, f"freeze_strategy={strategy}", f"optimizer.lr_factor={factor}", f"seed={seed}", "tuning_seed=0"]
        )
        for strategy, factor, seed in each
    ]
    planned = stages([job(config) for config in configs])
    found, accuracies = [], []
    for noise in (None, *map(np.random.default_rng, range(3))):
        folder = tmp_path / str(len(found))
        second, left_out = planned.second(finish(folder, planned.first, make_record, noise), choose_trial)
        finish(folder, second, make_record, noise)
        found.append((sorted(one.id for one in second), left_out, chosen(folder)))
        accuracies.append([row.test_accuracy.mean for row in compare(folder).rows])
    assert len(found[0][0]) == 4  # two seeds of one trial of each arm
    assert found[1:] == found[:1] * 3
    assert all(other != accuracies[0] for other in accuracies[1:])
