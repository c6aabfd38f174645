"""The scripts that start clusters: they start what they say, end all of it and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.cluster.conftest import OUTSIDE, LocalCluster, naming

pytestmark = pytest.mark.cluster


@pytest.fixture
def own(new_folder):
    """A SLURM cluster that the test starts and that is stopped in any case."""
    cluster = LocalCluster("slurm", new_folder)
    yield cluster
    cluster.script("stop")


def until(condition, seconds=30.0):
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return answer


def test_jobs_run_on_both_nodes(slurm):
    done = slurm.run("srun", "-N2", "-n4", "printenv", "SLURMD_NODENAME")
    assert sorted(done.stdout.split()) == ["n1", "n1", "n2", "n2"], done.stderr


def test_the_accounts_know_what_ran(slurm):
    job = slurm.run("sbatch", "--parsable", "--wrap=exit 3", "--output=/dev/null").stdout.strip()
    state = ["sacct", "-nPX", "-j", job, "--format=State,ExitCode"]
    until(lambda: slurm.run(*state).stdout.strip() == "FAILED|3:0")


def test_a_second_start_says_so_and_changes_nothing(slurm):
    before = naming(slurm.folder)
    again = slurm.script("start")
    assert again.returncode == 0
    assert again.stderr == f"cluster in {slurm.folder}: runs already\n"
    assert again.stdout == f"export SLURM_CONF={slurm.folder}/slurm.conf\n"
    assert naming(slurm.folder) == before


def test_a_requeued_job_starts_again_soon(slurm, tmp_path):
    turns = tmp_path / "turns"
    script = f"--wrap=echo $SLURM_RESTART_COUNT. >> {turns}; sleep 600"
    job = slurm.run("sbatch", "--parsable", script, "--output=/dev/null").stdout.strip()
    until(turns.exists)
    assert slurm.run("scontrol", "requeue", job).returncode == 0
    until(lambda: turns.read_text().split() == [".", "1."], seconds=60)
    slurm.run("scancel", job)


def test_two_clusters_run_side_by_side_and_one_has_no_accounting(slurm, own):
    own.start("--no-accounting")
    assert own.run("srun", "true").returncode == 0
    assert own.run("sacct").returncode == 1
    assert "accounting storage is disabled" in own.run("sacct").stderr
    job = slurm.run("sbatch", "--parsable", "--wrap=sleep 600", "--output=/dev/null").stdout.strip()
    assert own.run("squeue", "-h").stdout == ""
    stopped = own.script("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert naming(own.folder) == {}
    assert slurm.run("squeue", "-h", "-j", job, "-o", "%T").stdout.strip() in ("PENDING", "RUNNING")
    slurm.run("scancel", job)


def test_stop_ends_stubborn_jobs_and_a_second_stop_does_nothing(own):
    own.start("--no-accounting")
    stubborn = "--wrap=trap '' TERM USR1 USR2; setsid sleep 601 & touch began; sleep 601; sleep 602"
    own.run("sbatch", stubborn, "--output=/dev/null", f"--chdir={own.folder}")
    until((own.folder / "began").exists)
    assert any("sleep 601" in command for command in naming(own.folder).values())
    stopped = own.script("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert naming(own.folder) == {}
    again = own.script("stop")
    assert (again.returncode, again.stderr) == (0, f"cluster in {own.folder}: does not run\n")
    lost = own.script("env")
    assert (lost.returncode, lost.stderr) == (1, f"error: no cluster runs in {own.folder} -> start it\n")


def test_processes_of_others_survive(own, tmp_path):
    """A daemon's name, a user's shell that found the cluster, an editor of its files: none is the cluster's own."""
    own.start("--no-accounting")
    namesake = tmp_path / "slurmd"
    shutil.copy(shutil.which("sleep"), namesake)
    others = [
        subprocess.Popen([namesake, "600"], env=own.environment),
        subprocess.Popen(["tail", "-f", str(own.folder / "slurm.conf")], env=OUTSIDE, stdout=subprocess.DEVNULL),
    ]
    try:
        assert own.script("kill", "n1").returncode == 0
        assert own.script("stop").returncode == 0
        assert set(naming(own.folder)) == {process.pid for process in others}
    finally:
        for process in others:
            process.kill()
            process.wait()


def test_a_node_that_died_comes_back(own):
    own.start("--no-accounting")
    job = own.run("sbatch", "--parsable", "-w", "n2", "--wrap=sleep 600", "--output=/dev/null").stdout.strip()
    state = ["squeue", "-h", "-j", job, "-o", "%T"]
    until(lambda: own.run(*state).stdout.strip() == "RUNNING")
    killed = own.script("kill", "n2")
    assert (killed.returncode, killed.stderr) == (
        0,
        f"cluster in {own.folder}: killed n2; start brings it back\n",
    )
    assert not [command for command in naming(own.folder).values() if "n2" in command.split() or "sleep" in command]
    until(lambda: "Restarts=1 " in own.run("scontrol", "show", "job", job).stdout, seconds=90)
    started = own.script("start")
    assert started.stderr == f"cluster in {own.folder}: started slurmd of n2\n"
    assert own.run("scontrol", "update", f"jobid={job}", "StartTime=now").returncode == 0
    until(lambda: own.run(*state).stdout.strip() == "RUNNING")


@pytest.mark.parametrize("broken", ["slurmctld", "slurmd"])
def test_a_start_that_fails_leaves_nothing(own, tmp_path, broken):
    (tmp_path / broken).write_text("#!/bin/sh\necho 'fatal: no room in here'\nexit 1\n")
    (tmp_path / broken).chmod(0o755)
    started = own.script("start", "--no-accounting", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert started.returncode == 1
    assert started.stderr.startswith(f"error: {broken} ended: ")
    assert started.stderr.count("\n") == 1
    assert "no room in here" in started.stderr
    assert naming(own.folder) == {}
    own.start("--no-accounting")


def test_missing_programs_are_named_with_their_packages(own, tmp_path):
    code = (
        "import sys, shutil; sys.argv = ['slurm_cluster.py', 'start', sys.argv[1]];"
        "shutil.which = lambda name, path=None: None if 'slurmd' in name else '/bin/true';"
        "import runpy; runpy.run_path('scripts/slurm_cluster.py', run_name='__main__')"
    )
    environment = {**OUTSIDE, "PYTHONPATH": "scripts"}
    started = subprocess.run(
        [sys.executable, "-c", code, str(own.folder)], env=environment, capture_output=True, text=True
    )
    assert started.returncode == 1
    assert started.stderr == (
        "error: not installed: slurmdbd, slurmd -> "
        "apt-get install -y --no-install-recommends slurm-wlm munge slurmdbd mariadb-server\n"
    )


@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_a_folder_with_other_files_is_left_alone(kind, new_folder):
    (new_folder / "log").mkdir()
    (new_folder / "log" / "mine").write_text("kept")
    started = LocalCluster(kind, new_folder).script("start")
    assert started.returncode == 1
    assert started.stderr.startswith(f"error: {new_folder}: holds other files, expected an empty or new folder")
    assert (new_folder / "log" / "mine").read_text() == "kept"


TASKS = """
import json, ray
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_cpus=2)
def node():
    import time
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()
alive = sum(one["Alive"] for one in ray.nodes())
print(json.dumps([alive, len(set(ray.get([node.remote() for _ in range(4)])))]))
"""


def test_ray_runs_on_two_nodes_one_of_which_may_die(ray_cluster):
    def nodes():
        done = ray_cluster.run(sys.executable, "-c", TASKS)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert nodes() == [2, 2]
    assert ray_cluster.script("start").stderr == f"cluster in {ray_cluster.folder}: runs already\n"
    ray_cluster.script("kill")
    until(lambda: nodes() == [1, 1], seconds=60)
    assert ray_cluster.script("start").stderr == f"cluster in {ray_cluster.folder}: started second\n"
    until(lambda: nodes() == [2, 2], seconds=60)


def test_ray_lets_nobody_in_without_its_token(ray_cluster, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    environment = {**ray_cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    intruder = subprocess.Popen([sys.executable, "-c", TASKS], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert any("InvalidAuthToken" in line for line in intruder.stderr)
    finally:
        intruder.kill()
        intruder.wait()


def test_ray_writes_nothing_into_the_home_folder(new_folder, tmp_path):
    cluster = LocalCluster("ray", new_folder)
    home = tmp_path / "home"
    home.mkdir()
    try:
        started = cluster.script("start", HOME=str(home))
        assert started.returncode == 0, started.stderr
        done = subprocess.run(
            [sys.executable, "-c", TASKS],
            env={**cluster.environment, "HOME": str(home)},
            capture_output=True,
            text=True,
        )
        assert json.loads(done.stdout.splitlines()[-1]) == [2, 2], done.stderr
    finally:
        cluster.script("stop")
    assert list(home.iterdir()) == []
    assert naming(new_folder) == {}
