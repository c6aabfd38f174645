"""A run that was killed and goes on ends like one that was not, wherever it was cut."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_freeze import RULE
from tl_experiments.errors import TrainingError
from tl_experiments.objectives.supervised import SupervisedObjective
from tl_experiments.training import resume
from tl_experiments.training.build import build
from tl_experiments.training.resume import ResumePoint, is_due, read_resume_point
from tl_experiments.training.run import run
from tl_experiments.types import ModelLayout, Phase

KEYS = {"metrics", "best_step", "last_step", "phases", "still_rising", "notes", "accumulation"}


class PulledPlugError(Exception):
    """The process ends here."""


@dataclasses.dataclass(frozen=True)
class ThreePhases:
    """Head, last block, everything: starts in the middle of an epoch, at its end, and in the middle again."""

    name: str = "three_phases"
    reinitialize_backbone: bool = False
    base_lr: Mapping[str, float] = dataclasses.field(default_factory=lambda: RULE)

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        head = dict.fromkeys(layout.head.parameters, 1.0)
        last = {**head, **dict.fromkeys(layout.blocks[-1].parameters, 0.5)}
        everything = dict.fromkeys(layout.names(), 0.1)
        return Phase(0.0, head, "frozen"), Phase(5 / 24, last), Phase(0.5, everything)


def three_phases(tiny, *overrides):
    """24 steps in 8 epochs of 3; phases begin at 0, 5 and 12."""
    cfg = tiny(
        "trainer.max_epochs=8",
        "trainer.resume_interval_s=0",
        "augmentation=flip_crop",
        "backbone.kwargs={drop_rate: 0.2, drop_path_rate: 0.2}",
        *overrides,
    )
    return dataclasses.replace(cfg, freeze_strategy=ThreePhases())


def killed_at(cfg, folder, steps, monkeypatch):
    """Run until ``steps`` losses were computed, then die without a chance to tidy up."""
    count = 0
    loss = SupervisedObjective.loss

    def counting(self, model, batch):
        nonlocal count
        if count == steps:
            raise PulledPlugError
        count += 1
        return loss(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedObjective, "loss", counting)
        with pytest.raises(PulledPlugError):
            run(cfg, folder)


def lines(folder):
    return [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").open()]


def ends(folder, record):
    weights = load_file(folder / "checkpoint.safetensors")
    return lines(folder), {key: getattr(record, key) for key in KEYS}, weights


def assert_equal(one, two):
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert one[2].keys() == two[2].keys()
    assert all(torch.equal(one[2][name], two[2][name]) for name in one[2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each variant, made once."""
    made = {}

    def make(key, cfg):
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[key] = ends(folder, run(cfg, folder))
        return made[key]

    return make


# In an epoch, at its end; before, at and after the changes at 5 and 12; the first step and the last
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 6, 7, 11, 12, 13, 23])
def test_cut_anywhere_it_ends_the_same(tiny, tmp_path, monkeypatch, whole, steps):
    cfg = three_phases(tiny)
    killed_at(cfg, tmp_path, steps, monkeypatch)
    assert not (tmp_path / "record.json").exists()
    assert_equal(ends(tmp_path, run(cfg, tmp_path)), whole("plain", cfg))
    assert not list(tmp_path.glob("resume*"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.ema_decay=0.8"],
        ["optimizer=sgd", "optimizer.lr=0.01", "scheduler=one_cycle"],
        ["optimizer=timm", "optimizer.algorithm=lamb", "optimizer.lr=0.01", "scheduler=warm_restarts"],
        ["trainer.early_stopping_patience=1", "trainer.accumulation=2"],
    ],
    ids=lambda overrides: overrides[0].split(".")[-1],
)
def test_with_every_kind_of_state(tiny, tmp_path, monkeypatch, whole, overrides):
    cfg = three_phases(tiny, *overrides)
    for steps in (4, 10, 17):  # killed three times over
        try:
            killed_at(cfg, tmp_path, steps * cfg.trainer.accumulation, monkeypatch)
        except pytest.fail.Exception:
            break  # what was left of the run is shorter than that
    assert_equal(ends(tmp_path, run(cfg, tmp_path)), whole(overrides[0], cfg))


@pytest.mark.parametrize("strategy", ["lp_ft", "gradual_unfreezing"])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_strategies_of_several_phases(tiny, tmp_path, monkeypatch, whole, strategy, offset):
    """Cut before, at and after the start of the last phase."""
    cfg = tiny(f"freeze_strategy={strategy}", "trainer.max_epochs=8", "trainer.resume_interval_s=0")
    steps = build(cfg).phases[-1].first_step + offset
    killed_at(cfg, tmp_path, steps, monkeypatch)
    assert_equal(ends(tmp_path, run(cfg, tmp_path)), whole(strategy, cfg))


def test_no_more_than_one_epoch_is_repeated(tiny, tmp_path, monkeypatch):
    cfg = three_phases(tiny)
    killed_at(cfg, tmp_path, 17, monkeypatch)
    steps = 0
    loss = SupervisedObjective.loss

    def counting(self, model, batch):
        nonlocal steps
        steps += 1
        return loss(self, model, batch)

    monkeypatch.setattr(SupervisedObjective, "loss", counting)
    run(cfg, tmp_path)
    assert 24 - 17 <= steps <= 24 - 17 + 3


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"no checkpoint" * 1000),
    "one bit": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "no sha256": lambda path: path.with_suffix(".sha256").unlink(),
    "garbled sha256": lambda path: path.with_suffix(".sha256").write_bytes(b"\xff\x00"),
    "empty sha256": lambda path: path.with_suffix(".sha256").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_point_is_named_and_the_one_before_used(tiny, tmp_path, monkeypatch, whole, caplog, damage):
    cfg = three_phases(tiny)
    killed_at(cfg, tmp_path, 20, monkeypatch)
    before, last = sorted(tmp_path.glob("resume-*.pt"))
    DAMAGE[damage](last)
    with caplog.at_level("INFO", "tl_experiments"):
        record = run(cfg, tmp_path)
    (line,) = [line for line in caplog.messages if "is damaged" in line]
    assert line.startswith(f"{last} is damaged")
    assert line.endswith(f"going on from {before.name}")
    assert f"after step {int(before.stem.partition('-')[2])} of 24" in caplog.text
    assert_equal(ends(tmp_path, record), whole("plain", cfg))


def test_where_both_are_damaged_it_starts_over(tiny, tmp_path, monkeypatch, whole, caplog):
    cfg = three_phases(tiny)
    killed_at(cfg, tmp_path, 20, monkeypatch)
    before, last = sorted(tmp_path.glob("resume-*.pt"))
    DAMAGE["one bit"](before)
    DAMAGE["truncated"](last)
    with caplog.at_level("INFO", "tl_experiments"):
        record = run(cfg, tmp_path)
    lines = [line for line in caplog.messages if "is damaged" in line]
    assert [line.split()[0] for line in lines] == [str(last), str(before)]
    assert lines[1].endswith("starting over")
    assert "resuming" not in caplog.text
    assert_equal(ends(tmp_path, record), whole("plain", cfg))


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_kill_while_a_point_is_written_loses_none(tiny, tmp_path, monkeypatch, whole, written):
    """After 0, 1 or 2 of the files that make a point (hash, content), and before old points are removed."""
    cfg = three_phases(tiny)
    killed_at(cfg, tmp_path, 20, monkeypatch)
    had = sorted(tmp_path.glob("resume-*.pt"))
    write, count = resume.write_atomically, 0

    def dying(path, content):
        nonlocal count
        if count == written:
            (path.parent / f".{path.name}.999999999-abcd0123.tmp").write_bytes(b"a part")
            raise PulledPlugError
        count += 1
        return write(path, content)

    def no_removal(_path):
        raise PulledPlugError

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write_atomically", dying)
        patch.setattr(resume, "_remove", no_removal)
        with pytest.raises(PulledPlugError):
            run(cfg, tmp_path)
    assert set(had) <= set(tmp_path.glob("resume-*.pt"))
    assert_equal(ends(tmp_path, run(cfg, tmp_path)), whole("plain", cfg))
    assert not list(tmp_path.glob("resume*"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_changed_plan_or_changed_data_is_an_error_that_names_both(tiny, tmp_path, monkeypatch):
    cfg = three_phases(tiny)
    killed_at(cfg, tmp_path, 10, monkeypatch)
    (newest,) = sorted(tmp_path.glob("resume-*.pt"))[-1:]
    state = torch.load(newest, weights_only=True)
    state["run"]["data"] = "another"
    ResumePoint(**{**state, "step": state["step"] + 1}).write(tmp_path)
    expected = f"had another data: another then, {build(cfg).data.spec.fingerprint} now"
    with pytest.raises(TrainingError, match=expected):
        run(cfg, tmp_path)
    other = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, max_epochs=9))
    with pytest.raises(TrainingError, match="had another"):
        run(other, tmp_path)


@pytest.mark.parametrize(("interval", "steps"), [("1000", []), ("0", [3, 6, 9, 12])])
def test_points_are_as_rare_as_asked_for(tiny, tmp_path, monkeypatch, interval, steps):
    written = []
    write = ResumePoint.write
    monkeypatch.setattr(ResumePoint, "write", lambda self, folder: written.append(self.step) or write(self, folder))
    run(tiny("freeze_strategy=full", "trainer.max_epochs=4", f"trainer.resume_interval_s={interval}"), tmp_path)
    assert written == steps


@pytest.mark.parametrize(
    ("since_s", "write_s", "interval_s", "due"),
    [
        (0.1, 0.0, None, True),  # the first: what writing takes is not known
        (2.0, 0.1, None, True),  # a twentieth
        (2.0, 0.2, None, False),
        (4.0, 0.2, None, True),
        (2.0, 9.0, 0, True),
        (29.0, 0.1, 30, False),
    ],
)
def test_a_point_is_written_every_epoch_unless_that_takes_long(since_s, write_s, interval_s, due):
    assert is_due(since_s, write_s, interval_s) == due


def test_only_plain_content_is_read(tmp_path):
    """A resume point is read like any checkpoint: no code in it runs."""

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    content = pickle.dumps({"run": Payload()})
    (tmp_path / "resume-00000001.pt").write_bytes(content)
    (tmp_path / "resume-00000001.sha256").write_text(hashlib.sha256(content).hexdigest())
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_resume_point(tmp_path, {})
    assert not (tmp_path / "canary").exists()
