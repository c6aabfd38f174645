"""What SLURM is asked for and what it answers: its commands' output as recorded from a cluster, submitit's scripts."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys

import pytest

from tests.sweeps.test_sweep import job
from tl_experiments.config import compose
from tl_experiments.errors import ConfigError, UserError
from tl_experiments.sweeps import executors, slurm, slurm_queue
from tl_experiments.sweeps.cluster import Condition, UnansweredError
from tl_experiments.sweeps.ledger import Submitted
from tl_experiments.sweeps.slurm_options import flags, sbatch_options
from tl_experiments.sweeps.slurm_queue import UNKNOWN, Queue, sacct_conditions, squeue_conditions
from tl_experiments.sweeps.slurm_turn import Turn
from tl_experiments.sweeps.tasks import Task

# squeue --states=all --array of SLURM 22.05: fields as in slurm_queue
SQUEUE = """\
4_0|COMPLETED|UNLIMITED|n2|0|None|
1|FAILED|UNLIMITED|n1|768|NonZeroExitCode|
2|FAILED|UNLIMITED|n1|35072|NonZeroExitCode|
3|FAILED|UNLIMITED|n2|9|JobLaunchFailure|
4_2|PENDING|UNLIMITED||0|JobArrayTaskLimit|
20|PENDING|10:00||0|Resources|
22|PENDING|UNLIMITED||0|ReqNodeNotAvail, UnavailableNodes:n2|
18_0|RUNNING|364-23:59:56|n1|0|None|
25_1|RUNNING|3:59:44|n[1-2]|0|None|
39|COMPLETING|1:00|n1|0|None|
41_1|CANCELLED|UNLIMITED|n1|15|None|
"""


def test_lines_of_squeue_become_conditions():
    assert squeue_conditions(SQUEUE) == {
        "4_0": Condition("ended", "exit(0) before it was done (SLURM job 4_0)"),
        "1": Condition("ended", "exit code 3 before it was done (SLURM job 1)"),
        "2": Condition("ended", "killed by SIGKILL: out of memory? raise executor.memory_gb (SLURM job 2)"),
        "3": Condition("ended", "its node could not start it: JobLaunchFailure (SLURM job 3)", outside=True),
        "4_2": Condition("waiting", "JobArrayTaskLimit"),
        "20": Condition("waiting", "Resources", 600),
        "22": Condition("waiting", "ReqNodeNotAvail, UnavailableNodes:n2"),
        "18_0": Condition("running", "n1", 364 * 86400 + 86400 - 4),
        "25_1": Condition("running", "n[1-2]", 4 * 3600 - 16),
        "39": Condition("running", "n1", 60),
        "41_1": Condition("ended", "cancelled: CANCELLED (SLURM job 41_1)", outside=True),
    }


# sacct of SLURM 22.05: a job, its script, its step; 128 is taken off the first two codes
SACCT = """\
61|FAILED|3:0
61.batch|FAILED|3:0
61.0|FAILED|3:0
60_1|FAILED|9:0
60_1.batch|FAILED|9:0
60_1.0|CANCELLED|0:9
63|RUNNING|0:0
63.0|RUNNING|0:0
64_[2,5-6%2]|CANCELLED by 1000|0:0
65|OUT_OF_MEMORY|0:125
66|TIMEOUT|0:0
67|NODE_FAIL|1:0
"""


def test_lines_of_sacct_become_conditions():
    cancelled = {
        f"64_{n}": Condition("ended", f"cancelled: CANCELLED by 1000 (SLURM job 64_{n})", outside=True)
        for n in (2, 5, 6)
    }
    assert sacct_conditions(SACCT) == {
        "61": Condition("ended", "exit code 3 before it was done (SLURM job 61)"),
        "60_1": Condition("ended", "killed by SIGKILL: out of memory? raise executor.memory_gb (SLURM job 60_1)"),
        "65": Condition("ended", "killed by SLURM: OUT_OF_MEMORY -> raise executor.memory_gb (SLURM job 65)"),
        "66": Condition(
            "ended",
            "killed by SLURM: TIMEOUT before it could write a resume point -> raise executor.signal_delay_s "
            "(SLURM job 66)",
            outside=True,
        ),
        "67": Condition("ended", "its node failed: NODE_FAIL (SLURM job 67)", outside=True),
        **cancelled,
    }


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """``commands(squeue=script, ...)``: the only programs of SLURM that are found, and a file with a line a call."""
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    calls.touch()
    folder.mkdir()
    for name in ("sh", "cat", "env", "grep", "sort", "tr", "touch", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))

    def make(**scripts):
        for name, script in scripts.items():
            path = folder / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{script}\n')
            path.chmod(0o755)
        return calls

    return make


def test_many_jobs_are_looked_at_in_one_call_each(commands):
    calls = commands(squeue=f"cat <<'END'\n{SQUEUE}END", sacct=f"cat <<'END'\n{SACCT}END")
    handles = ["1", "4_0", "4_2", "61", "64_5", "70"]
    found = Queue().conditions(handles)
    assert [one.state for one in found.values()] == ["ended", "ended", "waiting", "ended", "ended", "ended"]
    assert found["70"] == UNKNOWN
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["squeue", "sacct"]
    assert calls.read_text().count("--jobs=1,4,61,64,70") == 2


def test_without_accounting_a_job_that_the_queue_forgot_has_ended(commands):
    commands(
        squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1",
    )
    assert Queue().conditions(["7_0", "7_1"]) == {"7_0": UNKNOWN, "7_1": UNKNOWN}


def test_a_silent_controller_is_told_of_once_and_ends_nothing(commands, caplog):
    down = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    commands(squeue=down)
    queue = Queue()
    caplog.set_level(logging.WARNING, "tl_experiments")
    assert [queue.conditions(["4_2"]) for _ in range(3)] == [{}, {}, {}]
    commands(squeue=f"cat <<'END'\n{SQUEUE}END")
    assert queue.conditions(["4_2"])["4_2"].state == "waiting"
    (line,) = caplog.messages
    assert "Unable to contact slurm controller" in line


def test_a_reason_that_does_not_pass_is_told_once(commands, caplog):
    held = "5_0|PENDING|10:00||0|launch failed requeued held|\n5_1|PENDING|10:00||0|launch failed requeued held|"
    commands(squeue=f"cat <<'END'\n{SQUEUE}{held}\nEND")
    queue = Queue()
    caplog.set_level(logging.WARNING, "tl_experiments")
    for _ in range(2):
        queue.conditions(["4_2", "20", "5_0", "5_1"])
    (line,) = caplog.messages
    assert line.startswith("SLURM holds job 5_0 back: launch failed requeued held")


FULL = (
    "executor.partition=gpu", "executor.account=lab", "executor.qos=long", "executor.constraint=a100|h100",
    "executor.cpus_per_task=6", "executor.memory_gb=1.5", "executor.time_min=90", "executor.signal_delay_s=60",
    "executor.max_parallel=3", "executor.setup=[module load cuda,ulimit -n 4096]",
    "+executor.options.mail-type=END", "+executor.options.exclusive=true", "+executor.options.comment=a b",
)  # fmt: skip


def directives(script):
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}


def test_every_key_reaches_the_script(commands, tmp_path, tiny):
    """With a stand-in for sbatch, which says what a real one says; the script is submitit's."""
    commands(
        sbatch="echo Submitted batch job 12",
        srun="",
        scontrol="echo 'MaxArraySize            = 1001'",
    )
    tasks = [
        Task((job(tiny("executor=slurm", *FULL, f"seed={seed}", "trainer=ddp", "trainer.accelerator=gpu")),))
        for seed in range(2)
    ]
    folder = tmp_path / "a sweep"
    assert slurm.Slurm(tasks[0].jobs[0].config.executor).submit(tasks, folder, 6, "feed") == ["12_0", "12_1"]
    script = (folder / "cluster" / "submitit" / "12_submission.sh").read_text()
    logs = f"'{folder}/cluster/submitit/%A_%a_0_log"
    assert directives(script) == {
        *("--account=lab", "--array=0-1%2", "--comment='a b'", "--constraint='a100|h100'", "--cpus-per-task=6"),
        *("--exclusive", "--gpus-per-node=2", "--job-name='a sweep'", "--mail-type=END", "--mem=1536M", "--nodes=1"),
        *("--ntasks-per-node=2", "--open-mode=append", "--partition=gpu", "--qos=long", "--requeue"),
        *("--signal=USR2@60", "--time=90", f"--output={logs}.out'", f"--error={logs}.err'"),
    }
    setup = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert setup[:3] == ["module load cuda", "ulimit -n 4096", "export OMP_NUM_THREADS=6"]
    assert " --cpus-per-task=6 --kill-on-bad-exit=1 " in setup[-1]


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        (("trainer.accelerator=auto",), ["--gpus-per-node=1"]),
        (("trainer.accelerator=cpu",), []),
        (("trainer.accelerator=auto", "executor.gpus_per_node=0"), []),
        (("trainer.accelerator=cpu", "executor.gpus_per_node=2"), ["--gpus-per-node=2"]),
        (("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"), ["--gpus-per-node=4"]),
    ],
)
def test_gpus_follow_from_the_trainer(overrides, gpus):
    config = compose(["executor=slurm", *overrides])
    given = flags(sbatch_options(config.executor, config.trainer, "name"))
    assert [flag for flag in given if "gpu" in flag] == gpus
    assert f"--nodes={config.trainer.num_nodes}" in given
    assert f"--ntasks-per-node={config.trainer.devices}" in given


def test_arrays_hold_what_is_alike_in_order_and_are_no_larger_than_allowed(commands, tmp_path, tiny):
    calls = commands(
        sbatch=f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n + 1)) > {tmp_path}/n\n"
        "echo Submitted batch job $((n + 1))",
        srun="",
        scontrol="echo 'MaxArraySize            = 2'",
    )
    two = ("trainer=ddp", "trainer.accelerator=cpu")
    tasks = [
        Task((job(tiny("executor=slurm", f"seed={seed}", *(two if seed in (1, 5) else ()))),)) for seed in range(6)
    ]
    handles = slurm.Slurm(tasks[0].jobs[0].config.executor).submit(tasks, tmp_path / "s", 1, "feed")
    assert handles == ["1_0", "3_0", "1_1", "2_0", "2_1", "3_1"]
    assert calls.read_text().count("sbatch ") == 3


def test_a_refused_array_takes_the_others_along(commands, tmp_path, tiny):
    calls = commands(
        sbatch=f"if [ -e {tmp_path}/n ]; then echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2; exit 1; fi\n"
        f"touch {tmp_path}/n; echo Submitted batch job 1",
        srun="",
        scontrol="echo 'MaxArraySize            = 2'",
        scancel="",
    )
    tasks = [Task((job(tiny("executor=slurm", f"seed={seed}")),)) for seed in range(4)]
    with pytest.raises(
        UserError, match=r"^executor=slurm: sbatch: QOSMaxSubmitJobPerUserLimit.*-> change executor.qos$"
    ):
        slurm.Slurm(tasks[0].jobs[0].config.executor).submit(tasks, tmp_path / "s", 1, "feed")
    assert "scancel --quiet 1_0 1_1\n" in calls.read_text()


@pytest.mark.parametrize(
    "script",
    ["kill -9 $$", "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv' >&2; exit 1", ""],
)
def test_an_sbatch_that_does_not_answer_is_no_refusal(commands, tmp_path, tiny, script):
    commands(sbatch=script, srun="", scontrol="")
    one = job(tiny("executor=slurm"))
    with pytest.raises(UnansweredError, match="executor=slurm: sbatch did not come to its end"):
        slurm.Slurm(one.config.executor).submit([Task((one,))], tmp_path / "s", 1, "feed")


def test_jobs_whose_numbers_were_lost_are_found(commands, tmp_path, tiny):
    """And sbatch is out of reach of the terminal, whose Ctrl-C would end it."""
    folder, parents = tmp_path / "a sweep", tmp_path / "parents"
    commands(sbatch=f"cat /proc/$$/stat > {parents}; echo Submitted batch job 12", srun="")
    commands(scontrol="echo 'MaxArraySize = 10'")
    tasks = [Task((job(tiny("executor=slurm", f"seed={seed}")),)) for seed in range(3)]
    cluster = slurm.Slurm(tasks[0].jobs[0].config.executor)
    cluster.submit(tasks, folder, 1, "feed")
    assert int(parents.read_text().rpartition(")")[2].split()[3]) != os.getsid(0)
    listing = [f"12_{number}|/another/view/of/it/feed-0.sh" for number in (1, 2)]
    commands(squeue="\n".join(f"echo '{line}'" for line in [*listing, "13|/home/me/job.sh", "14|/x/dead-0.sh"]))
    lost = [Submitted(task.id, [], "slurm lab", True, "", "", 0.0, "feed") for task in tasks]
    lost.append(dataclasses.replace(lost[0], id="other", token="dead"))
    assert cluster.find(lost, folder) == {tasks[1].id: "12_1", tasks[2].id: "12_2"}
    commands(squeue="exit 1")
    with pytest.raises(UserError, match="squeue: exit code 1"):
        cluster.find(lost, folder)


def test_a_pickled_turn_counts_those_that_follow(tmp_path, tiny):
    turn = Turn(Task((job(tiny()),)), tmp_path, 1, 3, 60)
    later = turn.checkpoint()
    assert (later.function.turns_left, later.args, later.kwargs) == (2, (), {})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+executor.options.time=10"], r"executor.options.time: .* -> give executor.time_min="),
        (["+executor.options.ntasks_per_node=2"], r"executor.options.ntasks_per_node: .* -> give trainer.devices="),
        (["+executor.options.clusters=other"], r"executor.options.clusters: jobs of another cluster .* -> submit on"),
        (["executor.time_min=2"], r"executor.signal_delay_s: got 120, expected less than the 120 s of time_min"),
        (["executor.max_parallel=0"], r"executor.max_parallel: got 0, expected 1 or more"),
    ],
)
def test_what_slurm_could_not_do_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(["executor=slurm", *overrides])


def test_without_sbatch_nothing_is_touched(tl, tmp_path, commands):
    code, _, err = tl("train", "executor=slurm", "dataset=digits", "backbone=test_resnet", f"output_dir={tmp_path}/o")
    assert (code, err.splitlines()) == (
        2,
        ["error: executor=slurm: sbatch is not found here -> run it where jobs are submitted, or executor=local"],
    )
    assert not any(tmp_path.glob("o/*"))


def test_without_submitit_nothing_is_touched(tl, tmp_path, commands, monkeypatch):
    commands(sbatch="", srun="", squeue="")
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    code, _, err = tl("train", "executor=slurm", "dataset=digits", "backbone=test_resnet", f"output_dir={tmp_path}/o")
    assert (code, err.splitlines()) == (
        2,
        ["error: executor=slurm: submitit is missing -> pip install 'tl-experiments[slurm]'"],
    )
    assert not any(tmp_path.glob("o/*"))


def test_a_refusal_is_one_line_before_anything_is_touched(tl, tmp_path, commands):
    commands(
        sbatch="echo 'sbatch: error: invalid partition specified: nope' >&2\n"
        "echo 'allocation failure: Invalid partition name specified' >&2; exit 1",
        srun="",
        squeue="",
    )
    arguments = ("executor=slurm", "executor.partition=nope", "dataset=digits", "backbone=test_resnet")
    code, _, err = tl("train", "-m", *arguments, "seed=0,1", f"output_dir={tmp_path}/o")
    (line,) = err.splitlines()
    assert code == 2
    assert line.startswith("error: executor=slurm: sbatch: invalid partition specified: nope; Invalid partition")
    assert line.endswith(" -> change executor.partition")
    assert not any(tmp_path.glob("o/*"))


def test_a_cluster_is_opened_by_its_name(commands):
    calls = commands(squeue=f"cat <<'END'\n{SQUEUE}END", scancel="", scontrol="echo 'ClusterName  = lab'")
    cluster = executors.cluster_of("slurm lab")
    assert cluster.conditions(["20"]) == {"20": Condition("waiting", "Resources", 600)}
    cluster.cancel(["20", "4_2"])
    assert calls.read_text().splitlines()[-1] == "scancel --quiet 20 4_2"
    cluster.cancel([])  # would be an error of scancel
    with pytest.raises(UserError, match="slurm other: squeue asks slurm lab here -> go where its jobs are"):
        executors.cluster_of("slurm other")
    commands(scancel="echo 'scancel: error: Kill job error on job id 20: Unable to contact controller' >&2; exit 1")
    with pytest.raises(UserError, match="scancel: Kill job error on job id 20: Unable to contact"):
        cluster.cancel(["20"])


def test_the_surrounding_job_is_not_handed_on(commands, monkeypatch):
    """SLURM's variables of a job from which ``tl`` is called would be taken for options; where SLURM is would not."""
    calls = commands(sbatch="env | grep ^SLURM_ | sort | tr '\\n' ' ' >> $(dirname $0)/../calls", srun="", squeue="")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    config = compose(["executor=slurm"])
    slurm.check(config.executor, [config.trainer])
    assert calls.read_text().splitlines()[-1].strip() == "SLURM_CONF=/etc/slurm.conf"
    assert os.environ["SLURM_MEM_PER_NODE"] == "100"


def test_the_command_imports_no_torch_to_submit():
    code = (
        "import sys, submitit, tl_experiments.sweeps.executors;"
        "print(*sorted({'torch', 'pytorch_lightning', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_missing_command_is_a_failed_one(commands):
    assert slurm_queue.largest_array() == 1
    assert not slurm_queue.is_preempted("1")
