"""Further test sets are read once, at the end, whichever way a run takes; nothing is chosen on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss

from tests.training.test_groups import together
from tl_experiments.errors import DataError
from tl_experiments.metrics.stored import read_predictions
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.costs import CostBook
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.planner import make_plan
from tl_experiments.sweeps.tasks import make_tasks
from tl_experiments.training.identity import job_id
from tl_experiments.training.preflight import Datasets, check_unchanged
from tl_experiments.training.run import run

WAYS = {
    "live": ["freeze_strategy=full"],
    "cached": ["freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "trainer.max_epochs=3"],
    "fused": ["optimizer.lr=0.05"],
    "solved": ["head=ridge"],
    "average": ["freeze_strategy=full", "trainer.ema_decay=0.5"],
}


@pytest.fixture
def root(tmp_path, uneven):
    return tmp_path / "uneven"


@pytest.fixture
def moved(tmp_path, root):
    """The test images with the classes' names changed round: every label is wrong."""
    names = sorted(path.name for path in (root / "test").iterdir())
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        shutil.copytree(root / "test" / name, tmp_path / "moved" / other)
    return tmp_path / "moved"


def with_tests(**tests: Path) -> str:
    return f"dataset.tests={{{', '.join(f'{name}: {path}' for name, path in tests.items())}}}"


@pytest.mark.parametrize("way", WAYS)
def test_the_test_images_once_more_give_the_same_numbers(tiny, tmp_path, uneven, root, moved, way):
    record = run(tiny(*uneven, *WAYS[way], with_tests(copy=root, moved=moved)), tmp_path / "run")
    assert list(record.metrics) == ["val", "test", "test/copy", "test/moved"]
    assert record.metrics["test/copy"] == record.metrics["test"]
    assert record.data["sizes"] == {"train": 54, "val": 12, "test": 12, "test/copy": 12, "test/moved": 12}
    assert record.data["labels_spent"] == 54 + 12
    stored = read_predictions(tmp_path / "run")
    assert list(stored) == list(record.metrics)
    assert stored["test/copy"].items == tuple(f"copy:{item.removeprefix('test/')}" for item in stored["test"].items)
    for split, predictions in stored.items():
        right = accuracy_score(predictions.labels, predictions.predicted)
        assert record.metrics[split]["accuracy"] == pytest.approx(right)
        nll = log_loss(predictions.labels, predictions.probabilities, labels=range(3))
        assert record.metrics[split]["nll"] == pytest.approx(nll, rel=1e-5)
    assert sorted(stored["test/moved"].predicted.tolist()) == sorted(stored["test"].predicted.tolist())
    assert record.metrics["test/moved"]["nll"] != record.metrics["test"]["nll"]
    work = record.work
    assert work["images_decoded"] == 54 + 12 + 3 * 12
    assert work["images_encoded"] == (0 if WAYS[way][0] == "freeze_strategy=full" else 54 + 12 + 3 * 12)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_chosen_on_them(tiny, tmp_path, uneven, root, moved, way):
    """Wrong labels change no weight, no step and no number of val and test."""
    tests = [[], [with_tests(x=root)], [with_tests(x=moved)]]
    runs = [run(tiny(*uneven, *WAYS[way], *one), tmp_path / str(number)) for number, one in enumerate(tests)]
    assert runs[1].metrics["test/x"] != runs[2].metrics["test/x"]
    weights = [load_file(tmp_path / str(number) / "checkpoint.safetensors") for number in range(3)]
    for other in (1, 2):
        assert runs[other].best_step == runs[0].best_step
        assert {split: runs[other].metrics[split] for split in ("val", "test")} == runs[0].metrics
        assert all(torch.equal(weights[0][name], weights[other][name]) for name in weights[0])
    assert len({record.job_id for record in runs}) == 3


def test_heads_that_are_trained_together_have_them_each(tiny, tmp_path, uneven, root):
    heads = [["optimizer.lr=0.05"], ["optimizer.lr=0.01", "dataset.folds=2"], ["head=knn"]]
    configs = [tiny(*uneven, with_tests(x=root), *one) for one in heads]
    assert set(together(configs, tmp_path / "together").values()) == {("ok", None)}
    for number, cfg in enumerate(configs):
        found = RunRecord.read(tmp_path / "together" / str(number))
        assert found.metrics["test/x"] == found.metrics["test"]
        assert found.metrics["test/x"] == pytest.approx(run(cfg, tmp_path / "alone").metrics["test/x"], rel=1e-3)


def test_the_log_names_them(tiny, tmp_path, uneven, root, log):
    record = run(tiny(*uneven, with_tests(x=root)), tmp_path / "run")
    (line,) = [line for line in log.messages if line.startswith("test/x")]
    assert f"accuracy {record.metrics['test/x']['accuracy']:.4f}" in line
    assert any("test 12, test/x 12 images" in line for line in log.messages)


def test_a_test_set_is_a_part_of_the_job(tiny, uneven, root, moved):
    def of(*options):
        return job_id(tiny(*uneven, *options))

    one = of(with_tests(x=moved))
    assert len({of(), one, of(with_tests(y=moved)), of(with_tests(x=root))}) == 4
    assert of("dataset.tests={}") == of()
    assert of(with_tests(x=f"{moved}/../moved/")) == one
    assert of(with_tests(x=root, y=moved)) == of(with_tests(y=moved, x=root))


def test_images_that_changed_are_told(tiny, tmp_path, uneven, moved):
    config = tiny(*uneven, with_tests(x=moved), "trainer.max_epochs=1")
    record = run(config, tmp_path / "run")
    check_unchanged([(config, record)])
    (moved / "ants" / "0.png").unlink()
    with pytest.raises(DataError, match=f"its images changed since job {record.job_id} ran"):
        check_unchanged([(config, record)])


def test_what_the_plan_counts_is_what_is_done(tiny, tmp_path, uneven, root):
    options = [["dataset.folds=3", f"dataset.fold={fold}"] for fold in range(3)]
    options += [["freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "trainer.max_epochs=3"]]
    configs = [tiny(*uneven, with_tests(x=root), *one) for one in options]
    jobs = [Job(job_id(cfg), tuple(one), cfg) for cfg, one in zip(configs, options, strict=True)]
    plan = make_plan(make_tasks(jobs, jobs, []), Datasets(), CostBook(tmp_path / "costs.json", "cpu", 1), 1)
    assert [len(task.jobs) for task in plan.tasks] == [3, 1]
    for number, task in enumerate(plan.tasks):
        together([job.config for job in task.jobs], tmp_path / str(number))
    records = [RunRecord.read(path.parent) for path in tmp_path.glob("[01]/*/record.json")]
    images = 54 + 3 * 12  # of the dataset and of the test set
    assert plan.total.decoded == sum(record.work["images_decoded"] for record in records) == images
    assert plan.total.encoded == sum(record.work["images_encoded"] for record in records) == 2 * images
