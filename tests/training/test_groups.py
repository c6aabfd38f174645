"""Heads that are trained together end where each ends alone, and a group that was killed goes on to the bit."""

from __future__ import annotations

import json
import re
from functools import partial

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.training.watching import distance
from tl_experiments.errors import DivergedError
from tl_experiments.records import RunRecord
from tl_experiments.training.groups import ALONE, group_key
from tl_experiments.training.history import History
from tl_experiments.training.run import run
from tl_experiments.training.together import run_together, unwatched

# What may differ within a group, one at a time and then together
OPTIONS = [
    [],
    ["optimizer.lr=0.1"],
    ["optimizer.weight_decay=0.3"],
    ["objective.label_smoothing=0.2"],
    ["trainer.gradient_clip_norm=0.02"],
    ["trainer.gradient_clip_norm=null"],
    ["scheduler=one_cycle"],
    ["scheduler=constant", "scheduler.warmup_fraction=0"],
    ["seed=1"],
    ["seed=1", "optimizer.lr=0.1", "objective.label_smoothing=0.1", "trainer.gradient_clip_norm=0.1"],
    ["dataset.shots=3"],
    ["dataset.shots=null", "dataset.label_fraction=0.05"],
    ["dataset.subset_seed=7"],
    ["trainer.batch_size=16"],
    ["trainer.eval_batch_size=50"],
    ["trainer.max_epochs=3"],
    ["optimizer=sgd", "optimizer.lr=0.5"],
    ["optimizer=sgd", "optimizer.lr=0.5", "optimizer.weight_decay=0.1", "scheduler=warm_restarts"],
    ["optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0", "optimizer.nesterov=false"],
]


class PulledPlugError(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights: random ones would be other ones under every seed."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def probe(tiny, weights):
    """A config of the group."""
    return partial(tiny, f"backbone.weights={weights}", "trainer.resume_interval_s=0", "trainer.max_epochs=5")


def together(configs, folder, done=frozenset(), progress=unwatched):
    """Train as one task below ``folder``; how each ended, by position."""
    jobs = [(cfg, folder / str(number)) for number, cfg in enumerate(configs)]
    assert len({group_key(cfg) for cfg in configs}) == 1
    states = {}

    def ended(position, state, cause, _seconds):
        states[position] = (state, cause)

    run_together(jobs, ALONE, ended, done, progress)
    return states


def weights_in(folder):
    return {name: w for name, w in load_file(folder / "checkpoint.safetensors").items() if name.startswith("head.")}


def lines(folder):
    return [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").open()]


def numbers(line):
    return {key: value for key, value in line.items() if value is not None}


def left(folder):
    """What a run leaves, without what the clock says."""
    record = RunRecord.read(folder)
    kept = ("job_id", "metrics", "best_step", "last_step", "phases", "still_rising", "notes")
    predictions = pq.read_table(folder / "predictions.parquet").to_pylist()
    return lines(folder), {key: getattr(record, key) for key in kept}, predictions, weights_in(folder)


def assert_same_bits(one, two):
    assert one[:3] == two[:3]
    assert one[3].keys() == two[3].keys()
    assert all(torch.equal(one[3][name], two[3][name]) for name in two[3])


def test_each_ends_where_it_ends_alone(probe, tmp_path):
    configs = [probe(*options) for options in OPTIONS]
    assert set(together(configs, tmp_path / "together").values()) == {("ok", None)}
    for number, cfg in enumerate(configs):
        found, alone = tmp_path / "together" / str(number), tmp_path / "alone" / str(number)
        record, expected = RunRecord.read(found), run(cfg, alone)
        assert record.work["together"] == len(configs)
        assert expected.work["together"] == 1
        assert (record.job_id, record.best_step) == (expected.job_id, expected.best_step)
        assert distance(weights_in(found), weights_in(alone)) <= 1e-3, OPTIONS[number]
        for one, other in zip(lines(found), lines(alone), strict=True):
            assert numbers(one) == pytest.approx(numbers(other), rel=1e-3)
        assert record.metrics["test"] == pytest.approx(expected.metrics["test"], rel=1e-3)
    assert sum(RunRecord.read(tmp_path / "together" / str(n)).work["images_encoded"] for n in range(len(configs))) > 0


def test_after_one_step_it_is_the_live_step(probe, tmp_path):
    options = [options for options in OPTIONS if not any("batch_size" in one for one in options)]
    one_step = ["trainer.max_epochs=1", "trainer.batch_size=1000", "debug.images_per_split=80"]
    configs = [probe(*each, *one_step) for each in options]
    together(configs, tmp_path / "together")
    steps = set()
    for number, options_of in enumerate(options):
        live = run(probe(*options_of, *one_step, "feature_cache=off"), tmp_path / "live")
        assert live.last_step == 1
        steps.add(live.best_step)
        assert RunRecord.read(tmp_path / "together" / str(number)).best_step == live.best_step
        assert distance(weights_in(tmp_path / "together" / str(number)), weights_in(tmp_path / "live")) <= 1e-5
    assert 1 in steps


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_that_diverges_costs_itself_alone(probe, tmp_path, optimizer):
    """Its step is that of the live run; the others' bits are those beside a head that is well."""
    well = [["optimizer.lr=0.1"], ["optimizer.lr=0.01"], ["optimizer.lr=0.03"], ["optimizer.lr=0.2"]]
    lost = "optimizer.lr=1e30"
    options = [*well[:2], [lost], *well[3:]]
    states = together([probe(f"optimizer={optimizer}", *each) for each in options], tmp_path / "lost")
    together([probe(f"optimizer={optimizer}", *each) for each in well], tmp_path / "well")
    with pytest.raises(DivergedError) as live:
        run(probe(f"optimizer={optimizer}", lost, "feature_cache=off"), tmp_path / "live")
    state, cause = states.pop(2)
    assert state == "diverged"
    assert re.search(r"not finite at step \d+", cause)
    assert cause == str(live.value)
    assert not (tmp_path / "lost" / "2" / "record.json").exists()
    assert set(states.values()) == {("ok", None)}
    for number in (0, 1, 3):
        assert_same_bits(left(tmp_path / "lost" / str(number)), left(tmp_path / "well" / str(number)))


STACKS = [
    ["seed=0"],
    ["optimizer.lr=0.1"],
    ["optimizer=sgd", "optimizer.lr=0.5"],
    ["optimizer=sgd", "optimizer.lr=0.1"],
]


# Validations are at the start and after each of five epochs, of two heads in each of two stacks.
@pytest.mark.parametrize(
    ("calls", "records"),
    [(0, ()), (3, ()), (4, ()), (7, ()), (11, ()), (12, (0, 1)), (16, (0, 1)), (19, (0, 1)), (23, (0, 1))],
)
def test_a_group_that_was_killed_ends_the_same(probe, tmp_path, calls, records):
    configs = [probe(*options) for options in STACKS]
    together(configs, tmp_path / "whole")
    seen = 0

    def progress(*_):
        nonlocal seen
        if seen == calls:
            raise PulledPlugError
        seen += 1

    with pytest.raises(PulledPlugError):
        together(configs, tmp_path / "killed", progress=progress)
    folders = [tmp_path / "killed" / str(number) for number in range(4)]
    assert tuple(number for number, folder in enumerate(folders) if (folder / "record.json").exists()) == records
    before = [contents(folders[number]) for number in records]
    validations = []
    states = together(configs, tmp_path / "killed", frozenset(records), lambda *steps: validations.append(steps))
    assert sorted(states) == [number for number in range(4) if number not in records]
    # the validation in progress again, and the one at the start before there is a point to go on from
    assert len(validations) == 24 - calls + calls % 2 + 2 * (calls % 12 in (2, 3))
    assert before == [contents(folders[number]) for number in records]
    for number, folder in enumerate(folders):
        assert_same_bits(left(folder), left(tmp_path / "whole" / str(number)))
        assert not list(folder.glob("resume*"))
    assert not (tmp_path / "killed" / "stacks").exists()


def test_a_group_that_is_split_after_a_resume_point_begins_anew(probe, tmp_path):
    """The point belongs to the whole stack; its halves are other stacks, under the same first run."""
    configs = [probe("trainer.resume_interval_s=0", f"optimizer.lr_factor={factor}") for factor in (1, 2, 3, 4)]
    seen = []

    def progress(*steps):
        seen.append(steps)
        if len(seen) == 13:
            raise PulledPlugError

    with pytest.raises(PulledPlugError):
        together(configs, tmp_path, progress=progress)
    assert list((tmp_path / "stacks").glob("*/resume-*.pt"))
    halves = [configs[:2], configs[2:]]
    for number, half in enumerate(halves):
        folders = [tmp_path / str(2 * number + position) for position in range(2)]
        states = {}
        run_together(
            list(zip(half, folders, strict=True)),
            ALONE,
            lambda position, state, cause, _, states=states: states.update({position: (state, cause)}),
        )
        assert states == {0: ("ok", None), 1: ("ok", None)}


def test_where_features_cannot_be_kept_heads_train_live(probe, tmp_path, monkeypatch, log):
    configs = [probe("feature_cache=off", f"seed={seed}") for seed in (0, 1)]
    live = [run(config, tmp_path / f"live{number}") for number, config in enumerate(configs)]
    for module in ("probing", "caching"):
        monkeypatch.setattr(f"tl_experiments.training.{module}.split", lambda *_: "a reason")
    states = together([probe(f"seed={seed}") for seed in (0, 1)], tmp_path)
    assert set(states.values()) == {("ok", None)}
    assert "features  cannot be kept (a reason): each run computes them in every step" in log.messages
    for number, expected in enumerate(live):
        found = RunRecord.read(tmp_path / str(number))
        assert found.metrics == expected.metrics
        assert found.work["cached_phases"] == []


def test_the_best_outputs_of_a_head_hold_no_other_heads(probe, tmp_path, monkeypatch):
    held = []
    restore = History.restore_best
    monkeypatch.setattr(
        History, "restore_best", lambda self, model: held.append(self.best_predictions.logits) or restore(self, model)
    )
    together([probe(f"optimizer.lr_factor={factor}") for factor in (1, 2, 3)], tmp_path)
    assert len(held) == 3
    for logits in held:
        assert logits.untyped_storage().nbytes() == logits.numel() * logits.element_size()


@pytest.mark.parametrize("finished", [(0,), (1,)])
def test_jobs_of_a_stack_that_are_done_take_part_and_are_not_written(probe, tmp_path, finished):
    """Without them the others would end in other bits."""
    configs = [probe(*options) for options in STACKS]
    together(configs, tmp_path / "whole")
    together(configs, tmp_path / "again")
    (other,) = {0, 1} - set(finished)
    expected = left(tmp_path / "again" / str(other))
    for path in (tmp_path / "again" / str(other)).iterdir():
        path.unlink()
    before = [contents(tmp_path / "again" / str(number)) for number in (*finished, 2, 3)]
    states = together(configs, tmp_path / "again", frozenset([*finished, 2, 3]))
    assert states == {other: ("ok", None)}
    assert before == [contents(tmp_path / "again" / str(number)) for number in (*finished, 2, 3)]
    assert_same_bits(left(tmp_path / "again" / str(other)), expected)


def contents(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("trainer.compile_backend=eager", "trainer.compile_backend"),
        ("feature_cache=off", "feature_cache=off"),
        ("augmentation=mixup", "augmentation=mixup mixes images"),
        ("augmentation=flip_crop", "augmentation=flip_crop makes each view anew (feature_cache.views=k would keep k)"),
    ],
)
def test_a_head_that_trains_alone_says_why(probe, tmp_path, log, override, reason):
    cfg = probe(override, "trainer.max_epochs=1")
    assert group_key(cfg) is None
    run(cfg, tmp_path / "alone")
    assert [line for line in log.messages if line.startswith("trains alone")] == [f"trains alone: {reason}"]
    log.clear()
    run(probe(override, "trainer.max_epochs=1", "freeze_strategy=full"), tmp_path / "full")
    assert not [line for line in log.messages if line.startswith("trains alone")]
