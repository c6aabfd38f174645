"""Ways to look into a run: fewer images, the same images, the profiler; and that none passes for a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tl_experiments import compare
from tl_experiments.config import compose
from tl_experiments.errors import UserError
from tl_experiments.sweeps.jobs import Job, sweep_folder
from tl_experiments.training.build import build
from tl_experiments.training.identity import job_id
from tl_experiments.training.run import run


@pytest.mark.parametrize("text", ["+debug=overfit", "debug=overfit"])
def test_overfit_learns_a_few_images_by_heart(tiny, tmp_path, text):
    cfg = tiny("freeze_strategy=full", "dataset.shots=null", "trainer.max_epochs=100", text)
    assert cfg.trainer.max_epochs == compose([text]).trainer.max_epochs
    parts = build(cfg)
    assert parts.data.item_ids("train") == parts.data.item_ids("val") == parts.data.item_ids("test")
    assert parts.data.spec.sizes["train"] == 16
    if text.startswith("+"):
        record = run(cfg, tmp_path)
        assert record.metrics["test"]["accuracy"] == 1.0
        assert "A debug run (overfit): its numbers are no result." in record.notes


def test_limit_runs_from_end_to_end_on_a_few_images_of_each_split(tiny, tmp_path):
    cfg = tiny("dataset.shots=null", "debug=limit", "debug.images_per_split=12", "trainer.max_epochs=1")
    record = run(cfg, tmp_path)
    assert record.data["sizes"] == {"train": 12, "val": 12, "test": 12}
    assert record.last_step == 2
    batch = next(iter(build(tiny("dataset.shots=null", "debug=limit")).data.eval_loader("val")))
    assert len(batch["label"].unique()) > 5


def test_profile_writes_operators_and_a_trace(tiny, tmp_path):
    run(tiny("dataset.shots=null", "debug=profile"), tmp_path)
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert "aten::addmm" in table or "aten::linear" in table
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep#")}
    assert len(steps) == 6


def test_profile_of_a_run_shorter_than_its_window(tiny, tmp_path):
    run(tiny("debug=profile"), tmp_path)  # 3 steps
    assert (tmp_path / "profile" / "operators.txt").stat().st_size > 0


@pytest.mark.parametrize(
    ("override", "same"),
    [("debug=true", True), ("debug=false", True), ("debug=limit", False), ("+debug=overfit", False)],
)
def test_what_changes_numbers_is_another_job_in_another_folder(tiny, override, same):
    plain, debug = tiny(), tiny(override)
    assert (job_id(debug) == job_id(plain)) is same

    def folder(cfg):
        return sweep_folder([Job(job_id(cfg), (), cfg)], [])

    assert (folder(debug) == folder(plain)) is same
    assert (folder(debug).parent.name == "debug") is not same


def test_the_comparison_leaves_debug_runs_out(tiny, tmp_path):
    run(tiny("debug=overfit"), tmp_path / "sweep" / "overfit")
    with pytest.raises(UserError, match="only debug runs"):
        compare(tmp_path / "sweep")
    run(tiny(), tmp_path / "sweep" / "real")
    comparison = compare(tmp_path / "sweep")
    assert [row.seeds for row in comparison.rows] == [(0,)]
    assert [job.state for job in comparison.lost_jobs] == ["debug"]


def test_a_run_from_python_goes_there_too(tiny):
    cfg = tiny("debug=limit", "trainer.max_epochs=1")
    run(cfg)
    assert list(Path(cfg.output_dir).glob("debug/runs/*/record.json"))
    assert not list(Path(cfg.output_dir).glob("runs/*"))


def test_options_without_a_name_are_no_result_either(tiny):
    assert build(tiny("debug.images_per_split=12")).notes == (
        "A debug run (options of debug): its numbers are no result.",
    )


def test_debug_true_shows_tracebacks():
    assert compose(["debug=true"]).debug.traceback
    assert not compose(["debug=false"]).debug.traceback
