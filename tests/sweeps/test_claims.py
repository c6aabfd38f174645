"""What earlier commands have on a cluster: shown and entered as it is, and never computed a second time."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

import pytest

from tests.sweeps.processes import put_in_place
from tests.sweeps.scripted import GONE, RUNNING, WAITING, Scripted, record, turn
from tests.sweeps.test_sweep import job
from tl_experiments import interrupt
from tl_experiments.cache.locks import try_hold
from tl_experiments.errors import UserError
from tl_experiments.interrupt import Detached
from tl_experiments.sweeps import claims
from tl_experiments.sweeps import cluster as clusters
from tl_experiments.sweeps.cancelling import cancel
from tl_experiments.sweeps.claims import settle
from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.journal import journal_path, lock_path
from tl_experiments.sweeps.ledger import Entry, Ledger, Submitted
from tl_experiments.sweeps.standing import standing
from tl_experiments.sweeps.survey import survey
from tl_experiments.sweeps.sweep import run_single, run_sweep
from tl_experiments.sweeps.tasks import Task

SUBMITTED = Submitted("t", ["a", "b"], "scripted", True, "7", "logs/t.log", 0.0)
ALONE = dataclasses.replace(SUBMITTED, id="a", jobs=["a"])


def nothing(journal, folder):
    pass


def left(journal, folder):
    journal.send(("progress", 0, 10, 100))
    journal.send(("left", "interrupted", "SIGUSR1 after step 12; run it again", True))


def one_failed(journal, folder):
    journal.send(("ended", 0, "failed", "a bug", 1.0))


def over(journal, folder):
    one_failed(journal, folder)
    (folder / "b").mkdir()
    (folder / "b" / "record.json").touch()
    journal.send(("ended", 1, "ok", None, 2.0))
    journal.over()


def over_without_a_record(journal, folder):
    journal.send(("ended", 0, "ok", None, 2.0))
    journal.over()


def recorded(journal, folder):
    over_without_a_record(journal, folder)
    (folder / "a").mkdir()
    (folder / "a" / "record.json").touch()


def out_of_memory(journal, folder):
    journal.send(("left", "oom", "no memory", False))
    journal.over()


@pytest.mark.parametrize(
    ("task", "script", "condition", "gone", "states", "detail"),
    [
        (SUBMITTED, None, WAITING, False, ["submitted", "submitted"], "Priority"),
        (SUBMITTED, None, None, False, ["submitted", "submitted"], ""),
        (SUBMITTED, None, GONE, True, ["interrupted", "interrupted"], "its process did not begin: gone; run it"),
        (ALONE, None, GONE, True, ["interrupted"], "its process did not begin: gone; run it again"),
        (SUBMITTED, nothing, GONE, True, ["interrupted", "interrupted"], "gone; run it again"),  # halves were next
        (ALONE, nothing, GONE, True, ["failed"], "gone"),
        (ALONE, None, Condition("ended", "lost", outside=True), True, ["interrupted"], "lost; run it again"),
        (ALONE, nothing, Condition("ended"), True, ["failed"], "ended before it was done"),
        (SUBMITTED, nothing, RUNNING, False, ["running", "running"], "node"),
        (SUBMITTED, nothing, None, False, ["running", "running"], "node, but its process shows no sign of life"),
        (SUBMITTED, one_failed, RUNNING, False, ["failed", "running"], "a bug"),
        (SUBMITTED, one_failed, GONE, True, ["failed", "interrupted"], "a bug"),
        (SUBMITTED, left, WAITING, False, ["submitted", "submitted"], "Priority, goes on in its next turn"),
        (SUBMITTED, left, GONE, True, ["interrupted", "interrupted"], "SIGUSR1 after step 12; run it again"),
        (ALONE, recorded, RUNNING, True, ["ok"], ""),  # it is done, though it is still listed
        (ALONE, recorded, None, True, ["ok"], ""),
        (SUBMITTED, over, None, True, ["failed", "ok"], "a bug"),
        (SUBMITTED, over, RUNNING, True, ["failed", "ok"], "a bug"),  # still listed
        (ALONE, over_without_a_record, None, True, ["interrupted"], "it ended well, but its record.json does not show"),
        (SUBMITTED, out_of_memory, None, True, ["interrupted", "interrupted"], "no memory; run it again"),
        (ALONE, out_of_memory, None, True, ["oom"], "no memory"),
        (dataclasses.replace(ALONE, outlives=False), nothing, None, True, ["interrupted"], "the command ended before"),
        (dataclasses.replace(ALONE, handle=""), None, None, False, ["submitted"], "whether scripted has it is not"),
    ],
)  # fmt: skip
def test_how_a_task_stands(tmp_path, tiny, task, script, condition, gone, states, detail):
    if script is not None:
        jobs = [Job(name, (), tiny()) for name in task.jobs]
        journal = turn(tmp_path, dataclasses.replace(Task(tuple(jobs))), "node")
        journal_path(tmp_path, Task(tuple(jobs)).id).rename(journal_path(tmp_path, task.id))
        journal._path = journal_path(tmp_path, task.id)
        script(journal, tmp_path)
    found = standing(tmp_path, task, condition, followed=False)
    assert found.gone is gone
    assert [found.jobs[name].state for name in task.jobs] == states
    assert found.jobs["a"].detail.startswith(detail)
    assert bool(found.jobs["a"].detail) is bool(detail)


def test_what_still_computes_is_not_gone(tmp_path):
    """A node that the cluster lost holds the task's lock."""
    with try_hold(lock_path(tmp_path, "t")):
        assert not standing(tmp_path, SUBMITTED, GONE, followed=False).gone
    assert standing(tmp_path, SUBMITTED, GONE, followed=False).gone


def test_steps_and_the_time_that_is_left(tmp_path, tiny, monkeypatch):
    task = Task((Job("a", (), tiny()),))
    clock = iter((1000.0, 1000.0, 1000.0, 1060.0))
    monkeypatch.setattr("time.time", lambda: next(clock))
    turn(tmp_path, task).send(("progress", 0, 90, 100))  # of an earlier turn
    journal = turn(tmp_path, task)
    monkeypatch.undo()
    clock = iter((1000.0, 1060.0))
    monkeypatch.setattr("time.time", lambda: next(clock))
    journal.send(("progress", 0, 40, 100))
    journal._next_progress = 0.0
    journal.send(("progress", 0, 60, 100))
    monkeypatch.undo()
    (now,) = standing(tmp_path, ALONE, RUNNING, followed=False).jobs.values()
    assert (now.done, now.total, now.left_s) == (60, 100, 120.0)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Any executor but the local one is this cluster; it says what ``says`` holds, and the command gets Ctrl-C."""

    def interrupted(cluster):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(claims, "SHOWS_WITHIN_S", 0.0)
    found = Scripted(tmp_path / "sweep", *[interrupted] * 9)
    put_in_place(found, monkeypatch.setattr)
    return found


def detach(jobs, folder):
    with interrupt.installed(at_once=True), pytest.raises(Detached) as error:
        run_sweep(jobs, folder, "command")
    return error.value


ON_A_CLUSTER = ("executor=slurm", "executor.poll_s=0.2")


def test_no_job_is_on_a_cluster_twice(tiny, cluster, tmp_path):
    folder = tmp_path / "sweep"

    def probe(seed, *options):  # of one group
        return job(tiny(f"optimizer.lr_factor={seed}", *(options or ON_A_CLUSTER)))

    detach([probe(1), probe(2)], folder)
    assert len(cluster.tasks) == 1
    before = Ledger.open(folder).plan["groups"]
    cluster.steps[:0] = [lambda _: None] * 5
    cluster.says = {"0": RUNNING}
    with pytest.raises(
        UserError, match="sweep: 1 of these jobs is on scripted as 0 -> the same jobs as in the earlier"
    ):
        run_sweep([probe(1)], folder, "fewer")
    with pytest.raises(
        UserError, match="2 of these jobs are on scripted as 0 -> executor=scripted to follow them, or tl"
    ):
        run_sweep([probe(1, "executor=local"), probe(2, "executor=local")], folder, "here")
    with pytest.raises(UserError, match="1 of these jobs is on scripted"):
        run_single(probe(1, "executor=local"), folder, "in the foreground")
    assert Ledger.open(folder).plan["groups"] == before
    assert {entry.state for entry in Ledger.open(folder).jobs.values()} == {"submitted"}
    cluster.steps[:] = cluster.steps[-1:]
    detach([probe(1), probe(2), probe(3)], folder)  # one more
    assert [len(task.jobs) for task in cluster.tasks.values()] == [2, 1]
    cluster.steps[:0] = [lambda _: None]  # now the first task is lost
    cluster.says = {"0": GONE, "1": WAITING}
    assert [row.state for row in survey(folder).rows] == ["interrupted", "interrupted", "submitted"]
    cluster.steps[:] = [lambda _: None, lambda _: os.kill(os.getpid(), signal.SIGINT)]
    detach([probe(1)], folder)
    assert [[one.id for one in task.jobs] for task in cluster.tasks.values()][2:] == [[probe(1).id]]
    states = {entry.id: entry.state for entry in Ledger.open(folder).jobs.values()}
    assert [states[probe(number).id] for number in (1, 2, 3)] == ["submitted", "interrupted", "submitted"]


def test_a_kill_while_tasks_are_submitted_hides_none(tiny, cluster, tmp_path, monkeypatch):
    folder, one = tmp_path / "sweep", job(tiny("freeze_strategy=full", *ON_A_CLUSTER))

    def killed(tasks, folder, threads, token):
        raise SystemError  # as near as a test gets

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "submit", killed)
        with pytest.raises(SystemError):
            run_sweep([one], folder, "command")
    (task,) = Ledger.open(folder).tasks.values()
    assert (task.handle, task.jobs) == ("", [one.id])
    assert survey(folder).rows[0].now.detail == "it was not submitted to the end; run it again"
    assert "whether scripted has it is not known" in survey(folder, ask_clusters=False).rows[0].now.detail
    cluster.lost = {task.token: "77"}
    cluster.steps, cluster.says = [lambda _: None] * 2 + cluster.steps, {"77": WAITING}
    assert survey(folder).rows[0].now.detail == "Priority"
    with pytest.raises(
        UserError, match="1 of these jobs is on scripted -> executor=scripted to follow them, or tl cancel"
    ):
        run_single(job(tiny("freeze_strategy=full")), folder, "here")
    assert cluster.cancelled == []
    detach([one], folder)  # nobody saw the end of its submission
    assert cluster.cancelled == ["77"]
    assert Ledger.open(folder).tasks[one.id].handle == "0"


@pytest.mark.parametrize("there", [True, False])
def test_what_was_lost_while_it_was_submitted_can_be_cancelled(tiny, cluster, tmp_path, there):
    folder = tmp_path / "sweep"
    ledger = Ledger(folder, jobs={name: Entry(name, [], "submitted") for name in "ab"})
    ledger.tasks["t"] = dataclasses.replace(SUBMITTED, handle="", token="feed")
    folder.mkdir()
    ledger.write()
    cluster.lost = {"feed": "77"} if there else {}
    assert cancel(folder, [], forget=False).startswith("cancelled 1 task of 2 jobs")
    assert cluster.cancelled == (["77"] if there else [])
    assert {entry.state for entry in Ledger.open(folder).jobs.values()} == {"interrupted"}


def test_a_cancellation_that_fails_ends_nothing(tiny, cluster, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    ledger = Ledger(folder, jobs={name: Entry(name, [], "submitted") for name in "ab"})
    ledger.tasks["t"] = SUBMITTED
    folder.mkdir()
    ledger.write()

    def fails(handles):
        raise UserError("scripted", "scancel: no answer", "later")

    monkeypatch.setattr(cluster, "cancel", fails)
    with pytest.raises(UserError, match="1 task of 2 jobs on scripted: scancel: no answer"):
        cancel(folder, [], forget=False)
    assert list(Ledger.open(folder).tasks) == ["t"]


def test_a_job_that_a_node_still_computes_is_waited_for(tiny, tmp_path, monkeypatch):
    """``tl cancel`` is done when the cluster has the order, and its node may still write a resume point."""
    task = Task((job(tiny("freeze_strategy=full")),))
    held = try_hold(lock_path(tmp_path, task.id))
    monkeypatch.setattr(clusters, "_RESUME_POINT_S", 0.3)
    with pytest.raises(UserError, match=f"still computed by process {os.getpid()} on"):
        settle(Ledger(tmp_path), [task], None)
    monkeypatch.setattr(clusters, "_RESUME_POINT_S", 30.0)
    threading.Timer(0.5, held.release).start()
    assert not settle(Ledger(tmp_path), [task], None)
    assert try_hold(lock_path(tmp_path, task.id)) is not None


def test_a_command_leaves_no_job_without_an_account(tiny, tmp_path):
    """Every state that a job can be left in, and what the next command makes of it."""
    ledger = Ledger(tmp_path)
    for name, state in {"a": "running", "b": "submitted", "c": "running", "d": "submitted", "e": "pending"}.items():
        ledger.jobs[name] = Entry(name, [], state)
    ledger.tasks["t"] = SUBMITTED  # a and b
    ledger.tasks["c"] = dataclasses.replace(ALONE, id="c", jobs=["c"], outlives=False)
    ledger.write()
    record(tmp_path, Job("d", (), tiny()))
    rows = {row.entry.id: row.state for row in survey(tmp_path, ask_clusters=False).rows}
    assert rows == {"a": "submitted", "b": "submitted", "c": "interrupted", "d": "ok", "e": "skipped"}
    one = job(tiny("freeze_strategy=full", "trainer.max_epochs=1"))
    assert run_sweep([one], tmp_path, "another job").ok == 1
    ledger = Ledger.open(tmp_path)
    states = {name: ledger.jobs[name].state for name in "abcde"}
    assert states == {"a": "running", "b": "submitted", "c": "interrupted", "d": "interrupted", "e": "skipped"}
    assert list(ledger.tasks) == ["t"]


def test_nothing_is_chosen_before_all_settings_were_tried(tiny, cluster, tmp_path, monkeypatch):
    """One was cancelled: that val chose another would not be true."""
    monkeypatch.setattr(clusters, "_LAST_LINES_S", 0.0)
    options = ("freeze_strategy=full", "tuning_seed=0", *ON_A_CLUSTER)
    jobs = [job(tiny(f"optimizer.lr_factor={f}", f"seed={seed}", *options)) for seed in (0, 1) for f in (0.1, 1)]

    def cancelled(cluster):
        cluster.turn("0").send(("ended", 0, "failed", "a bug", 1.0))
        cluster.turn("1")
        cluster.says = {"1": Condition("ended", "cancelled", outside=True)}

    cluster.steps[:] = [cancelled]
    outcome = run_sweep(jobs, tmp_path / "sweep", "command", choose=lambda settings: min(settings))
    waits = ("skipped", "1 of 2 jobs with seed 0 have not ended; run it again")
    assert [(entry.state, entry.cause) for entry in outcome.bad] == [
        ("failed", "a bug"), ("interrupted", "cancelled; run it again"), waits, waits,
    ]  # fmt: skip
    assert len(cluster.tasks) == 2


def test_what_an_earlier_task_wrote_may_show_late(tiny, cluster, tmp_path, monkeypatch):
    """Its job is not computed again for that."""
    monkeypatch.setattr(claims, "SHOWS_WITHIN_S", 60.0)
    monkeypatch.setattr(claims, "_LOOK_S", 0.01)
    one = job(tiny("freeze_strategy=full", *ON_A_CLUSTER))
    ledger = Ledger(tmp_path)
    ledger.jobs[one.id] = Entry(one.id, [], "submitted")
    ledger.tasks[one.id] = dataclasses.replace(ALONE, id=one.id, jobs=[one.id], cluster="another")
    looks = iter(
        [
            lambda: None,
            lambda: turn(tmp_path, Task((one,))).send(("ended", 0, "ok", None, 1.0)),
            lambda: record(tmp_path, one),
        ]
    )

    def look(*arguments, **options):
        next(looks)()
        return standing(*arguments, **options)

    monkeypatch.setattr(claims, "ask", lambda *_: ({one.id: GONE}, {}))
    monkeypatch.setattr(claims, "standing", look)
    assert claims.settle(ledger, [Task((one,))], None)
    assert ledger.jobs[one.id].state == "ok"


def test_a_failure_in_a_task_that_goes_on_is_tried_again_after_it(tiny, cluster, tmp_path, caplog):
    def probes(*options):
        return [job(tiny(f"optimizer.lr_factor={factor}", *ON_A_CLUSTER, *options)) for factor in (1, 2)]

    def interrupted(cluster):
        cluster.says = {"0": RUNNING}
        os.kill(os.getpid(), signal.SIGINT)

    cluster.steps[:] = [
        lambda cluster: cluster.turn("0").send(("ended", 0, "failed", "a bug", 1.0)), *[interrupted] * 2,
    ]  # fmt: skip
    detach(probes(), tmp_path / "sweep")
    caplog.set_level("WARNING", "tl_experiments")
    detach(probes("retry_failed=true"), tmp_path / "sweep")
    assert len(cluster.tasks) == 1
    assert "1 jobs that failed are of tasks that go on with others: retry_failed=true runs them again" in caplog.text
