"""Reading runs while somebody else writes them."""

from __future__ import annotations

import pytest

from tl_experiments.tracking.entries import folder_name, run_name
from tl_experiments.tracking.runs import Reader

LINE = '{"step": %d, "val_accuracy": %s}\n'


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        (LINE % (0, 0.1) + LINE % (4, 0.2), [(0, 0.1), (4, 0.2)]),
        (LINE % (0, 0.1) + '{"step": 4, "val_acc', [(0, 0.1)]),  # torn
        (LINE % (0, 0.1) + '{"step": 4, "v' + LINE % (4, 0.2) + LINE % (8, 0.3), [(0, 0.1), (8, 0.3)]),  # torn, resumed
        (LINE % (0, 0.1) + LINE % (4, 0.2) + LINE % (4, 0.9) + LINE % (8, 0.3), [(0, 0.1), (4, 0.2), (8, 0.3)]),
        ("[1, 2]\nnull\n" + LINE % (0, 0.1), [(0, 0.1)]),
    ],
)
def test_a_curve_has_each_whole_step_once(sweep, text, steps):
    sweep.begin("a")
    (sweep.folder / "a" / "metrics.jsonl").write_text(text)
    (run,) = Reader(sweep.folder).changed(over=False)
    assert [(line["step"], line["val_accuracy"]) for line in run.curve] == steps


def test_only_what_changed_is_read_again(sweep):
    reader = Reader(sweep.folder)
    assert list(reader.changed(over=False)) == []  # the folder is not there yet
    sweep.begin("a")
    sweep.begin("b")
    assert [run.id for run in reader.changed(over=False)] == ["a", "b"]
    assert list(reader.changed(over=False)) == []
    sweep.line("b", 0)
    assert [run.id for run in reader.changed(over=False)] == ["b"]
    sweep.finish("a")
    assert [(run.id, run.state, run.ended) for run in reader.changed(over=False)] == [("a", "ok", True)]
    assert [(run.id, run.state) for run in reader.changed(over=True)] == [("b", "interrupted")]


def test_a_run_that_could_not_be_entered_is_read_again(sweep):
    sweep.begin("a")
    reader = Reader(sweep.folder)
    next(reader.changed(over=False))  # what takes it fails, and does not ask for the next
    assert [run.id for run in reader.changed(over=False)] == ["a"]


@pytest.mark.parametrize(
    "evil",
    ["../../etc/x", "<script>alert(1)</script>", "[red]x[/red]", "a\x1b[31mb", "a\nb", "x" * 300, "=cmd()", "é🙂"],
)
def test_names_are_safe(sweep, evil):
    sweep.begin("a", arm={"dataset": evil, "backbone": evil, "head": "linear", "freeze_strategy": "full"})
    (run,) = Reader(sweep.folder).changed(over=False)
    assert len(run_name(run)) <= 128
    assert run_name(run).isprintable()
    folder = sweep.folder / "tensorboard" / folder_name(run)
    assert folder.resolve().parent == sweep.folder / "tensorboard"
    assert len(folder.name) < 100
    folder.mkdir(parents=True)
