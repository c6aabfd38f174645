"""Following tasks of a cluster: what is taken for what, whatever order it comes in. Nothing is trained."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.sweeps.scripted import GONE, RUNNING, WAITING, Remembers, Scripted, record, turn
from tl_experiments import interrupt
from tl_experiments.cache.locks import try_hold
from tl_experiments.errors import UserError
from tl_experiments.interrupt import Cancelled, Detached
from tl_experiments.sweeps import cluster as clusters
from tl_experiments.sweeps.cluster import Condition, UnansweredError, run_on_cluster
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.journal import JournalReader, journal_path, lock_path
from tl_experiments.sweeps.lock import ask_to_cancel, running_here, runs_here
from tl_experiments.sweeps.tasks import Task


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(clusters, "_LAST_LINES_S", 0.0)


@pytest.fixture
def jobs(tiny):
    config = tiny()
    return [Job(name, (f"name={name}",), config) for name in "abcd"]


def follow(cluster, tasks, known=None):
    listener = Remembers()
    run_on_cluster(tasks, cluster.folder, 1, cluster, known or {}, 0.0, listener)
    assert not cluster.steps, "ended before the test expected it"
    return listener


def say(handle, condition):
    return lambda cluster: cluster.says.update({handle: condition})


def test_a_good_end_counts_when_its_record_can_be_read(tmp_path, jobs):
    task = Task((jobs[0],))

    def end(cluster):
        journal = cluster.turn("0")
        journal.send(("progress", 0, 3, 10))
        journal.send(("ended", 0, "ok", None, 1.5))
        journal.over()
        cluster.says["0"] = GONE

    seen = follow(
        Scripted(tmp_path, say("0", WAITING), end, say("0", GONE), lambda _: record(tmp_path, jobs[0])), [task]
    )
    assert seen.events == [
        ("submitting", 1), ("submitted", "0"), ("started",), ("progressed", "a", 3, 10), ("ended", "a", "ok", None),
        ("finished",),
    ]  # fmt: skip


def test_a_record_that_never_shows_is_no_good_end(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(clusters, "SHOWS_WITHIN_S", 0.0)

    def end(cluster):
        cluster.turn("0").send(("ended", 0, "ok", None, 1.5))

    state, cause = follow(Scripted(tmp_path, end), [Task((jobs[0],))]).ends["a"]
    assert state == "interrupted"
    assert "record.json does not show" in cause


def test_a_state_that_flaps_ends_nothing(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(clusters, "_LAST_LINES_S", 3600.0)

    def end(cluster):
        record(tmp_path, jobs[0])
        cluster.turn("0").send(("ended", 0, "ok", None, 1.5))

    flaps = [say("0", condition) for condition in (RUNNING, GONE, RUNNING, GONE, WAITING, RUNNING, GONE)]
    seen = follow(Scripted(tmp_path, *flaps, lambda cluster: cluster.says.clear(), end), [Task((jobs[0],))])
    assert seen.ends == {"a": ("ok", None)}
    assert seen.events.count(("started",)) == 1


@pytest.mark.parametrize("over", [True, False], ids=["over", "gone"])
def test_a_task_of_several_that_dies_is_tried_again_in_halves(tmp_path, jobs, over):
    def die(cluster):
        journal = cluster.turn("0")
        journal.send(("ended", 1, "failed", "its own fault", 1.0))
        if over:
            journal.over()  # without a word on the others
        else:
            cluster.says["0"] = GONE

    def the_rest(cluster):
        assert [[job.id for job in task.jobs] for task in cluster.tasks.values()] == [list("abcd"), ["a", "c"], ["d"]]
        for handle in "12":
            journal = cluster.turn(handle)
            for number, job in enumerate(cluster.tasks[handle].jobs):
                record(tmp_path, job)
                journal.send(("ended", number, "ok", None, 1.0))
            journal.over()

    seen = follow(Scripted(tmp_path, die, the_rest), [Task(tuple(jobs))])
    assert seen.ends == {"b": ("failed", "its own fault"), **dict.fromkeys("acd", ("ok", None))}
    assert ("split", 2, "ended before it was done" if over else "gone") in seen.events


def test_what_a_task_wrote_may_show_late(tmp_path, jobs, monkeypatch):
    """Journal and record of a machine whose files take a minute to show: the job is done, not dead."""
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(clusters.time, "monotonic", lambda: next(clock))

    def show(cluster):
        cluster.turn("0").send(("ended", 0, "ok", None, 1.0))
        record(tmp_path, jobs[0])

    seen = follow(Scripted(tmp_path, say("0", GONE), say("0", GONE), show), [Task((jobs[0],))])
    assert seen.ends == {"a": ("ok", None)}


def test_no_job_is_to_blame_for_a_process_that_did_not_begin(tmp_path, jobs, monkeypatch):
    """Such as for a line of the setup: the jobs are not tried again in halves."""
    monkeypatch.setattr(clusters, "SHOWS_WITHIN_S", 0.0)
    death = Condition("ended", "exit code 7 before it was done", log="cluster/submitit/0_0_log.err")
    seen = follow(Scripted(tmp_path, say("0", death)), [Task(tuple(jobs[:2]))])
    cause = f"its process did not begin: {death.detail}; see {death.log}; run it again"
    assert seen.ends == dict.fromkeys("ab", ("interrupted", cause))


def test_a_job_that_dies_alone_has_failed_and_one_with_a_record_has_not(tmp_path, jobs):
    def die(cluster):
        cluster.turn("0")
        cluster.turn("1")
        record(tmp_path, jobs[1])  # it was killed before it could say so
        cluster.says |= {"0": GONE, "1": GONE}

    seen = follow(Scripted(tmp_path, die), [Task((jobs[0],)), Task((jobs[1],))])
    assert seen.ends == {"a": ("failed", "gone"), "b": ("ok", None)}


def test_what_was_ended_from_outside_is_left_to_the_next_command(tmp_path, jobs):
    """Nor is a task of several tried again in halves."""
    says = say("0", Condition("ended", "cancelled by somebody", outside=True))
    seen = follow(Scripted(tmp_path, says), [Task(tuple(jobs[:2]))])
    assert set(seen.ends.values()) == {("interrupted", "cancelled by somebody; run it again")}


def test_a_node_that_the_cluster_lost_may_go_on_computing(tmp_path, jobs):
    """Nothing is tried again as long as its process holds the task's lock."""
    task, held = Task(tuple(jobs[:2])), []

    def lose(cluster):
        held.append(try_hold(lock_path(tmp_path, task.id)))
        held.append(cluster.turn("0"))
        cluster.says["0"] = GONE

    def end(cluster):
        for number in (0, 1):
            record(tmp_path, jobs[number])
            held[1].send(("ended", number, "ok", None, 1.0))
        held[0].release()

    seen = follow(Scripted(tmp_path, lose, say("0", GONE), say("0", GONE), end), [task])
    assert seen.ends == {"a": ("ok", None), "b": ("ok", None)}
    assert seen.events.count(("submitting", 1)) == 1


def test_a_turn_that_was_put_back_goes_on_where_it_was_left(tmp_path, jobs):
    def leave(cluster):
        cluster.turn("0").send(("left", "interrupted", "SIGUSR2 after step 3; run it again", True))
        cluster.says["0"] = WAITING

    def end(cluster):
        journal = cluster.turn("0")
        record(tmp_path, jobs[0])
        journal.send(("ended", 0, "ok", None, 1.0))
        journal.over()

    seen = follow(Scripted(tmp_path, leave, say("0", RUNNING), end), [Task((jobs[0],))])
    assert seen.ends == {"a": ("ok", None)}


def test_the_last_word_of_a_task_that_is_not_put_back_counts(tmp_path, jobs):
    def leave(cluster):
        cluster.turn("0").send(("left", "interrupted", "SIGUSR2 after step 3; run it again", True))
        cluster.says["0"] = GONE

    seen = follow(Scripted(tmp_path, leave), [Task(tuple(jobs[:2]))])
    assert set(seen.ends.values()) == {("interrupted", "SIGUSR2 after step 3; run it again")}


def test_what_was_submitted_before_is_followed_and_not_submitted_again(tmp_path, jobs):
    task = Task((jobs[0],))
    journal = turn(tmp_path, task)
    journal.send(("ended", 0, "failed", "a bug", 2.0))
    journal.over()
    cluster = Scripted(tmp_path, lambda cluster: None)  # which does not answer
    assert follow(cluster, [task], {task.id: "77"}).events == [
        ("started",),
        ("ended", "a", "failed", "a bug"),
        ("finished",),
    ]
    assert cluster.tasks == {}


def test_a_refusal_is_entered(tmp_path, jobs):
    cluster = Scripted(tmp_path)
    cluster.refuses = True
    listener = Remembers()
    with pytest.raises(UserError, match="no such one"):
        run_on_cluster([Task((jobs[0],))], tmp_path, 1, cluster, {}, 0.0, listener)
    assert listener.events == [("submitting", 1), ("refused", 1)]


@pytest.mark.parametrize("outlives", [True, False])
@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_leaves_the_tasks_where_they_outlive_the_command(tmp_path, jobs, outlives, signals):
    def interrupted(cluster):
        cluster.turn("0").send(("left", "interrupted", "SIGTERM after step 3; run it again", True))
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)

    cluster, listener = Scripted(tmp_path, interrupted, outlives=outlives), Remembers()
    with interrupt.installed(at_once=True), pytest.raises(interrupt.Interrupted) as error:
        run_on_cluster([Task((jobs[0],))], tmp_path, 1, cluster, {}, 0.0, listener)
    assert error.value.exit_code == 130
    assert isinstance(error.value, Detached) is outlives
    assert cluster.cancelled == ([] if outlives else ["0"])
    if outlives:
        assert listener.ends == {}
        said = f"a task goes on at scripted: the same command again follows it, tl status {tmp_path} shows it"
        assert str(error.value).startswith(said)
    elif signals == 1:
        assert listener.ends == {"a": ("interrupted", "SIGTERM after step 3; run it again")}


def test_signals_while_tasks_are_submitted_hide_none(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(interrupt, "_ECHO_S", 0.0)
    cluster, listener = Scripted(tmp_path), Remembers()
    submit = cluster.submit

    def interrupted(*arguments):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return submit(*arguments)

    monkeypatch.setattr(cluster, "submit", interrupted)
    with interrupt.installed(at_once=True), pytest.raises(Detached, match="a task goes on at scripted"):
        run_on_cluster([Task((jobs[0],))], tmp_path, 1, cluster, {}, 0.0, listener)
    assert listener.events == [("submitting", 1), ("submitted", "0")]


def test_a_cluster_that_does_not_answer_a_submission_has_not_refused_it(tmp_path, jobs, monkeypatch):
    def unanswered(*arguments):
        raise UnansweredError("scripted", "timed out", "again")

    cluster, listener = Scripted(tmp_path), Remembers()
    monkeypatch.setattr(cluster, "submit", unanswered)
    with pytest.raises(UnansweredError):
        run_on_cluster([Task((jobs[0],))], tmp_path, 1, cluster, {}, 0.0, listener)
    assert listener.events == [("submitting", 1)]


@pytest.mark.parametrize("which", [None, {"b"}], ids=["all", "one"])
def test_another_command_may_ask_for_an_end(tmp_path, jobs, which):
    """Cancelled jobs have not failed: they are not tried again in halves."""

    def ask(cluster):
        ask_to_cancel(tmp_path, runs_here(tmp_path), which)

    def end(cluster):
        record(tmp_path, jobs[2])
        cluster.turn("1").send(("ended", 0, "ok", None, 1.0))

    tasks, listener = [Task(tuple(jobs[:2])), Task((jobs[2],))], Remembers()
    cluster = Scripted(tmp_path, ask, *([] if which is None else [end]))
    with running_here(tmp_path):
        if which is None:
            with pytest.raises(Cancelled, match="2 tasks on scripted, by tl cancel"):
                run_on_cluster(tasks, tmp_path, 1, cluster, {}, 0.0, listener)
        else:
            run_on_cluster(tasks, tmp_path, 1, cluster, {}, 0.0, listener)
    assert cluster.cancelled == (["0", "1"] if which is None else ["0"])
    cancelled = ("interrupted", "cancelled; run it again")
    assert listener.ends == {"a": cancelled, "b": cancelled, "c": cancelled if which is None else ("ok", None)}


def test_a_request_to_an_earlier_command_is_none_to_this_one(tmp_path, jobs):
    with running_here(tmp_path):
        ask_to_cancel(tmp_path, runs_here(tmp_path), None)

    def end(cluster):
        cluster.turn("0").send(("ended", 0, "failed", "a bug", 1.0))

    with running_here(tmp_path):
        assert follow(Scripted(tmp_path, end), [Task((jobs[0],))]).ends == {"a": ("failed", "a bug")}


def test_torn_lines_and_words_of_an_earlier_submission_are_left_out(tmp_path, jobs):
    task = Task(tuple(jobs[:2]))
    path, old = journal_path(tmp_path, task.id), turn(tmp_path, task)
    with path.open("a") as stream:
        stream.write('{"event": "ended", "job": "a", "sta')  # a kill in mid-line
    reader = JournalReader(path)
    assert [line["event"] for line in reader.news()] == ["began"]
    turn(tmp_path, task).send(("ended", 0, "failed", "caf\u00e9", 1.0))
    with path.open("ab") as stream:
        stream.write(b'\xff\x00\n[1]\n{"event": ["ended"]}\n')
    old.over()  # the same submission: its first turn still has a say
    assert [line["event"] for line in reader.news()] == ["began", "ended", "over"]
    path.unlink()  # the task is submitted again
    old.send(("ended", 1, "failed", "late", 1.0))
    old.over()
    reader = JournalReader(path)
    assert reader.news() == []
    turn(tmp_path, task)
    assert [line["event"] for line in reader.news()] == ["began"]
    assert all(json.loads(line)["time"] > 0 for line in path.read_text().splitlines())
