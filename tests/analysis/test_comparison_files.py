import json
import os
import re
import subprocess
import sys
import time

import pytest

from tl_experiments.analysis import compare
from tl_experiments.analysis.results import Comparison
from tl_experiments.errors import UserError

ARMS = {"full": 0.95, "from_scratch": 0.9}


def write_sweep(folder, records, states=None, **fields):
    """Records into folders named by job, and the ``sweep.json`` that lists them."""
    states = states or {}
    jobs = []
    for index, record in enumerate(records):
        job_id = f"job{index:03d}"
        state = states.get(job_id, "ok")
        if state == "ok":
            record.write(folder / job_id)
        cause = None if state == "ok" else f"why {state}"
        jobs.append({"id": job_id, "overrides": [f"seed={record.seed}"], "state": state, "cause": cause})
        jobs[-1] |= {"log": None, "seconds": 1.0}
    write_jobs(folder, jobs, **fields)
    return folder


def write_jobs(folder, jobs, **fields):
    content = {"schema_version": 1, "name": "x", "commands": [], "plan": {}, "jobs": jobs}
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content | fields))


@pytest.fixture
def sweep(tmp_path, make_sweep):
    return write_sweep(tmp_path / "sweep", make_sweep(ARMS))


def test_a_sweep_leaves_its_comparison_and_its_tables(sweep):
    comparison = compare(sweep)
    assert {path.name for path in (sweep / "comparison").iterdir()} == {
        *("comparison.json", "table.csv", "table.md", "table.tex", "contrasts.csv", "datasets.csv", "per_class.csv"),
    }
    assert [row.arm.freeze_strategy for row in comparison.rows] == ["full", "from_scratch"]
    assert comparison == Comparison.from_json((sweep / "comparison/comparison.json").read_text())


def test_only_jobs_that_ended_ok_count(tmp_path, make_sweep):
    records = make_sweep(ARMS)
    folder = write_sweep(tmp_path, records, states={"job000": "failed", "job009": "interrupted"})
    records[0].write(folder / "job000")  # left from an earlier try
    comparison = compare(folder)
    assert [len(row.seeds) for row in comparison.rows] == [4, 4]
    assert [(job.job_id, job.state, job.cause) for job in comparison.lost_jobs] == [
        ("job000", "failed", "why failed"),
        ("job009", "interrupted", "why interrupted"),
    ]


def test_a_finished_sweep_is_read_back_without_statistics(sweep, monkeypatch):
    first = compare(sweep)
    monkeypatch.setattr(
        sys.modules["tl_experiments.analysis.compare"], "_compute", lambda *_: pytest.fail("computed again")
    )
    assert compare(sweep) == first
    code = (
        "import sys; from tl_experiments.analysis import compare, show; compare(sys.argv[1]);"
        "assert not {'scipy', 'numpy', 'rich', 'torch'} & sys.modules.keys(), 'a heavy import'"
    )
    subprocess.run([sys.executable, "-c", code, str(sweep)], check=True)


def test_a_sweep_of_100_jobs_is_read_back_in_milliseconds(tmp_path, make_sweep):
    folder = write_sweep(tmp_path, make_sweep(ARMS, seeds=range(10), factors=(0.1, 0.3, 1.0, 3.0, 10.0)))
    compare(folder)
    start = time.perf_counter()
    compare(folder)
    assert time.perf_counter() - start < 0.2  # about 0.01 s on an idle core


def change_a_record(folder):
    path = folder / "job000/record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 99}))


def change_a_state(folder):
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    write_jobs(folder, [{**jobs[0], "state": "failed", "cause": "x"}, *jobs[1:]])


def damage(folder):
    (folder / "comparison/comparison.json").write_text('{"rows": [')


def edit(folder):
    path = folder / "comparison/comparison.json"
    content = json.loads(path.read_text())
    content["rows"][0]["test_accuracy"]["mean"] += 0.01
    path.write_text(json.dumps(content, indent=1))


def edit_the_verdict_and_drop_the_hash(folder):
    path = folder / "comparison/comparison.json"
    content = json.loads(path.read_text())
    content["verdicts"][0]["sentence"] = "Verdict: mine is better."
    del content["sha256"]
    path.write_text(json.dumps(content))


def remove_a_table(folder):
    (folder / "comparison/table.md").unlink()


@pytest.mark.parametrize(
    "change",
    [change_a_record, change_a_state, damage, edit, edit_the_verdict_and_drop_the_hash, remove_a_table],
)
def test_what_changed_is_compared_anew(sweep, change):
    first = compare(sweep)
    change(sweep)
    (sweep / "comparison/table.csv").write_text("old")
    comparison = compare(sweep)
    assert comparison == Comparison.from_json((sweep / "comparison/comparison.json").read_text())
    assert (sweep / "comparison/table.csv").read_text() != "old"
    assert (sweep / "comparison/table.md").is_file()
    if change not in (change_a_record, change_a_state):
        assert comparison == first


def test_white_space_and_order_are_no_change(sweep, monkeypatch):
    first = compare(sweep)
    path = sweep / "comparison/comparison.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    monkeypatch.setattr(
        sys.modules["tl_experiments.analysis.compare"], "_compute", lambda *_: pytest.fail("computed again")
    )
    assert compare(sweep) == first


def test_several_sweeps_are_one_comparison_in_a_folder_of_their_own(tmp_path, make_sweep):
    one = write_sweep(tmp_path / "one", make_sweep({"full": 0.95}))
    two = write_sweep(tmp_path / "two", make_sweep({"from_scratch": 0.9}, sd=0.011))
    comparison = compare(one, two)
    assert [row.arm.freeze_strategy for row in comparison.rows] == ["full", "from_scratch"]
    assert "transfer helps" in comparison.verdicts[0].sentence
    (written,) = (tmp_path / "comparisons").iterdir()
    assert (written / "table.csv").is_file()
    assert not (one / "comparison").exists()
    assert not (two / "comparison").exists()


def test_the_same_runs_given_twice_are_no_more_evidence(tmp_path, sweep, make_sweep):
    copy = write_sweep(tmp_path / "copy", make_sweep(ARMS))
    once = compare(sweep).rows
    assert compare(sweep, sweep).rows == once
    assert compare(sweep, copy).rows == once


def test_a_job_that_failed_in_one_sweep_and_ended_in_another_is_not_lost(tmp_path, make_sweep):
    records = make_sweep({"full": 0.95})
    one = write_sweep(tmp_path / "one", records, states={"job000": "failed"})
    two = write_sweep(tmp_path / "two", [])
    job = records[0].job_id
    jobs = json.loads((one / "sweep.json").read_text())["jobs"]
    write_jobs(one, [{**jobs[0], "id": job}, *jobs[1:]])
    records[0].write(two / job)
    write_jobs(two, [{**jobs[0], "id": job, "state": "ok", "cause": None}])
    comparison = compare(one, two)
    assert comparison.lost_jobs == ()
    assert len(comparison.rows[0].seeds) == 5


def test_the_folder_of_one_job(tmp_path, make_record):
    make_record().write(tmp_path)
    assert len(compare(tmp_path).rows) == 1
    assert (tmp_path / "comparison/table.md").is_file()


def test_a_folder_without_sweep_json_is_read_by_its_records(tmp_path, make_record):
    for seed in range(2):
        make_record(seed=seed).write(tmp_path / f"job{seed}")
    assert compare(tmp_path).rows[0].seeds == (0, 1)


def test_a_damaged_or_missing_record_costs_only_itself(sweep):
    (sweep / "job000/record.json").write_text('{"schema_version": 1, "config"')
    (sweep / "job001/record.json").unlink()
    comparison = compare(sweep)
    assert {(job.job_id, job.state, job.overrides) for job in comparison.lost_jobs} == {
        ("job000", "unreadable", ("seed=0",)),
        ("job001", "unreadable", ("seed=1",)),
    }
    assert len(comparison.rows[0].seeds) == 3


def test_a_job_name_does_not_lead_out_of_the_sweep(tmp_path, make_record):
    make_record(seed=1).write(tmp_path / "outside")
    make_record(seed=0).write(tmp_path / "sweep/in")
    ok = {"overrides": [], "state": "ok", "cause": None, "log": None, "seconds": 1.0}
    write_jobs(tmp_path / "sweep", [{**ok, "id": "in"}, {**ok, "id": "../outside"}])
    comparison = compare(tmp_path / "sweep")
    assert comparison.rows[0].seeds == (0,)
    assert [job.job_id for job in comparison.lost_jobs] == ["../outside"]


@pytest.mark.parametrize("name", ["=cmd", "<script>", "[red]x", "a b\nc", "🙂", "x" * 200])
def test_odd_folder_names(tmp_path, make_record, name):
    make_record().write(tmp_path / name / "job")
    assert len(compare(tmp_path / name).rows) == 1


def test_errors_say_what_was_got_expected_and_how_to_go_on(tmp_path, make_sweep):
    with pytest.raises(UserError, match=r"^compare: 0 folders, expected 1 or more -> give the folder of a sweep"):
        compare()
    with pytest.raises(UserError, match=r"gone: no such folder -> give the folder of a sweep"):
        compare(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no finished job, expected a record\.json in it or in a job's folder -> run"):
        compare(tmp_path)
    folder = write_sweep(tmp_path / "all_failed", make_sweep({"full": 0.9}, seeds=[0]), states={"job000": "oom"})
    with pytest.raises(UserError, match=r"0 of 1 jobs finished, expected a record\.json"):
        compare(folder)
    with pytest.raises(UserError, match=r"in a job's folder -> run the sweep"):
        compare(tmp_path)
    for age, name in enumerate(("new", "b c", "a", "oldest")):
        write_sweep(tmp_path / name, make_sweep({"full": 0.9}, seeds=[0]))
        os.utime(tmp_path / name / "job000/record.json", (1e9 - age, 1e9 - age))
    paths = f"{tmp_path}/new or '{tmp_path}/b c' or {tmp_path}/a"
    with pytest.raises(UserError, match=rf"-> give a sweep in it, such as {re.escape(paths)}$"):
        compare(tmp_path)
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"jobs": [1]}', '{"jobs": [{"id": "a"}]}', "\x00"])
def test_a_damaged_sweep_file_is_named(sweep, text):
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json: .* -> .*run"):
        compare(sweep)
