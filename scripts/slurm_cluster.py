"""A SLURM cluster of two nodes on this machine, for tests and for trying ``executor=slurm``.

    python scripts/slurm_cluster.py start DIR [--no-accounting]   # starts what does not run yet, a few seconds
    eval "$(python scripts/slurm_cluster.py env DIR)"             # sets SLURM_CONF: srun, sbatch, tl find the cluster
    python scripts/slurm_cluster.py kill DIR n2                   # node n2 dies: SIGKILL to its slurmd and jobs
    python scripts/slurm_cluster.py stop DIR                      # ends all of it; logs stay in DIR/log

Needs no systemd, no cgroups and no root: it is a cluster of the user who starts it. All state lies below DIR, all ports
are free ones on 127.0.0.1, so that several such clusters run side by side. A start after a stop begins afresh: empty
queue, empty accounts. Packages: apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server.

Nodes n1 and n2 have 2 CPUs each, however many the machine has, and half its memory each. Their names are known to SLURM
alone and do not resolve: a job over both nodes needs MASTER_ADDR=127.0.0.1. A node that dies is noticed within half a
minute, or when ``start`` brings it back, and its jobs are requeued; a requeued job waits 10 seconds
(``scontrol update jobid=J StartTime=now`` starts it at once). A job in the partition ``urgent`` puts those of ``debug``
and, 30 seconds later, those of ``grace`` back into the queue. With ``--no-accounting`` there is no slurmdbd, and
``sacct`` fails, as on some small clusters.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster_parts import all_pids, end, environment, marked
from slurm_files import NODES, value, write_files

# In the order in which they are started, slurmd after them
DAEMONS, ACCOUNTING = ("munged", "mariadbd", "slurmdbd", "slurmctld"), ("mariadbd", "slurmdbd")
# A daemon carries its cluster's folder in its environment; so a pid that was recycled is never taken for it
MARK = "TL_SLURM_CLUSTER"
INSTALL_DB = "mariadb-install-db"
START_TIMEOUT_S = 90
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class ClusterError(Exception):
    """What the user is told in one line."""


def daemons(folder: Path) -> dict[int, list[str]]:
    """Processes of the cluster's daemons, each with its command line."""
    return marked(MARK, str(folder))


def running(folder: Path, name: str, node: str | None = None) -> list[int]:
    """Processes of one daemon, of a node's slurmd."""
    return [
        pid
        for pid, command in daemons(folder).items()
        if Path(command[0]).name == name and (node is None or node in command)
    ]


def on_nodes(folder: Path, node: str | None = None) -> list[int]:
    """Steps (slurmstepd) and the jobs' processes below them, of one node or of all."""
    nodes = NODES if node is None else (node,)
    logs = {str(folder / "log" / f"slurmd.{name}.log") for name in nodes}
    found = []
    for pid in all_pids():
        own = environment(pid)
        of_job = own.get("SLURM_CONF") == str(folder / "slurm.conf") and own.get("SLURMD_NODENAME") in nodes
        if of_job or (is_step(pid) and logs & open_files(pid)):
            found.append(pid)
    return found


def is_step(pid: int) -> bool:
    """Whether this is a slurmstepd; it overwrites its environment with its title."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd"
    except OSError:
        return False


def open_files(pid: int) -> set[str]:
    """Paths that a process holds open."""
    try:
        return {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()


def surroundings(folder: Path) -> dict[str, str]:
    """The environment in which SLURM's commands find this cluster and no other."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
    return {**kept, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}


def ask(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """One of SLURM's commands, run to its end."""
    return subprocess.run(command, env=surroundings(folder), capture_output=True, text=True, timeout=60)


def launch(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A daemon in the foreground of a session of its own."""
    with (folder / "log" / f"{name}.out").open("ab") as out:
        return subprocess.Popen(
            [shutil.which(name, path=PATH) or name, *arguments],
            env={**surroundings(folder), MARK: str(folder)},
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip


def wait(folder: Path, name: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Until a daemon answers; its last line is the error where it ends instead."""
    began = time.monotonic()
    while not ready():
        if process.poll() is not None or time.monotonic() - began > START_TIMEOUT_S:
            how = f"did not answer within {START_TIMEOUT_S} s" if process.poll() is None else "ended"
            raise ClusterError(f"{name} {how}: {last_line(folder, name)} -> see {folder / 'log'}")
        time.sleep(0.05)


def last_line(folder: Path, name: str) -> str:
    """That a daemon left, in its log or elsewhere."""
    logs = sorted((folder / "log").glob(f"{name}*"), key=lambda path: path.stat().st_mtime)
    lines = [line.strip() for path in logs for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_munged(folder: Path) -> None:
    """Who may speak to whom, by a key of this cluster alone."""
    names = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    files = (f"--{option}={folder / 'munge' / name}" for option, name in names.items())
    # forced: it objects to folders that others may not enter, such as those of pytest
    process = launch(folder, "munged", "--foreground", "--force", "--num-threads=10", *files)
    wait(folder, "munged", process, (folder / "munge" / "munge.sock").exists)


def start_mariadbd(folder: Path) -> None:
    """The database below slurmdbd."""
    data, user = folder / "mariadb", getpass.getuser()
    common = ("--no-defaults", f"--datadir={data}", f"--user={user}")
    if not data.is_dir():
        made = launch(folder, INSTALL_DB, *common, "--auth-root-authentication-method=normal", "--skip-test-db")
        if made.wait():
            shutil.rmtree(data, ignore_errors=True)
            raise ClusterError(f"{INSTALL_DB} failed: {last_line(folder, INSTALL_DB)} -> see {folder / 'log'}")
    port = int(value(folder / "slurmdbd.conf", "StoragePort"))
    process = launch(
        folder, "mariadbd", *common, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder}/mariadb.sock",
        f"--pid-file={folder}/mariadbd.pid", f"--init-file={folder}/accounts.sql", "--innodb-flush-log-at-trx-commit=0",
    )  # fmt: skip
    wait(folder, "mariadbd", process, lambda: listens(port))


def start_slurmdbd(folder: Path) -> None:
    """The accounts; its own file is found beside slurm.conf."""
    process = launch(folder, "slurmdbd", "-D")
    port = int(value(folder / "slurmdbd.conf", "DbdPort"))
    wait(folder, "slurmdbd", process, lambda: listens(port))
    if not ask(folder, "sacctmgr", "-nP", "list", "cluster", "format=cluster").stdout.strip():
        added = ask(folder, "sacctmgr", "-i", "add", "cluster", value(folder / "slurm.conf", "ClusterName"))
        if added.returncode:
            raise ClusterError(f"sacctmgr: {' '.join(added.stderr.split())} -> see {folder / 'log'}")


def start_slurmctld(folder: Path) -> None:
    """The controller."""
    process = launch(folder, "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
    wait(folder, "slurmctld", process, lambda: "UP" in ask(folder, "scontrol", "ping").stdout)


def start_slurmd(folder: Path, node: str) -> None:
    """A node, until it takes jobs."""
    process = launch(folder, "slurmd", "-D", "-N", node)
    wait(folder, "slurmd", process, lambda: state(folder, node) in ("idle", "mixed", "allocated"))


def state(folder: Path, node: str) -> str:
    """Of a node, as sinfo names it; a ``*`` at its end is one that does not answer."""
    return ask(folder, "sinfo", "-h", "-n", node, "-o", "%T").stdout.strip()


def check(folder: Path, accounting: bool) -> None:
    """That a cluster can be started there."""
    needed = [name for name in DAEMONS if accounting or name not in ACCOUNTING]
    needed += ["slurmd", "srun", *([INSTALL_DB] if accounting else [])]
    if missing := [name for name in needed if shutil.which(name, path=PATH) is None]:
        packages = "slurm-wlm munge" + " slurmdbd mariadb-server" * accounting
        raise ClusterError(
            f"not installed: {', '.join(missing)} -> apt-get install -y --no-install-recommends {packages}"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "slurm.conf").exists():
        raise ClusterError(f"{folder}: holds other files, expected an empty or new folder, or an earlier cluster's")
    if len(str(folder)) > 80:
        raise ClusterError(
            f"{folder}: {len(str(folder))} characters, expected at most 80 for sockets below it -> shorter"
        )


def start(folder: Path, accounting: bool) -> str:
    """Start what does not run yet; ends when both nodes take jobs."""
    check(folder, accounting)
    afresh = not daemons(folder)
    if afresh:
        write_files(folder, accounting)
    accounting = (folder / "slurmdbd.conf").exists()
    begin = {
        "munged": start_munged, "mariadbd": start_mariadbd, "slurmdbd": start_slurmdbd, "slurmctld": start_slurmctld,
    }  # fmt: skip
    started = []
    try:
        for name in DAEMONS:
            if (accounting or name not in ACCOUNTING) and not running(folder, name):
                begin[name](folder)
                started.append(name)
        for node in NODES:
            if not running(folder, "slurmd", node):
                start_slurmd(folder, node)
                started.append(f"slurmd of {node}")
    except BaseException:
        if afresh:
            stop(folder)
        raise
    return f"started {', '.join(started)}" if started else "runs already"


def stop(folder: Path) -> str:
    """End jobs and daemons, the controller first, so that nothing is started meanwhile."""
    names = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged")
    before = [name for name in names for _ in running(folder, name)]
    for name in names[:2]:
        end(lambda name=name: running(folder, name), patience_s=10)
    end(lambda: on_nodes(folder), patience_s=2)
    for name in names[2:]:
        end(lambda name=name: running(folder, name), patience_s=20)
    end(lambda: list(daemons(folder)), patience_s=2)
    return f"stopped {', '.join(before)}" if before else "does not run"


def kill(folder: Path, node: str) -> str:
    """A node's death: its slurmd, its steps and their jobs at once."""
    if node not in NODES:
        raise ClusterError(f"node {node!r}: expected one of {', '.join(NODES)}")
    end(lambda: running(folder, "slurmd", node) + on_nodes(folder, node), patience_s=0)
    return f"killed {node}; start brings it back"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("start", "stop", "env", "kill"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("node", nargs="?", help="of kill: n1 or n2")
    parser.add_argument("--no-accounting", action="store_true", help="of start: without slurmdbd")
    given = parser.parse_args()
    folder = given.folder.absolute()
    try:
        match given.verb:
            case "start":
                said = start(folder, not given.no_accounting)
            case "stop":
                said = stop(folder)
            case "kill":
                said = kill(folder, given.node or "")
            case "env":
                if not daemons(folder):
                    raise ClusterError(f"no cluster runs in {folder} -> start it")
                said = "runs"
    except (ClusterError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stderr.write(f"cluster in {folder}: {said}\n")
    if given.verb in ("start", "env"):
        sys.stdout.write(f"export SLURM_CONF={folder / 'slurm.conf'}\n")


if __name__ == "__main__":
    main()
