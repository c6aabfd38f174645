"""A SLURM cluster of two nodes on this machine, for tests and for trying ``executor=slurm``.

    python scripts/slurm_cluster.py start DIR [--no-accounting]   # starts what does not run yet, a few seconds
    eval "$(python scripts/slurm_cluster.py env DIR)"             # sets SLURM_CONF: srun, sbatch, tl find the cluster
    python scripts/slurm_cluster.py kill DIR n2                   # node n2 dies: SIGKILL to its slurmd and jobs
    python scripts/slurm_cluster.py stop DIR                      # ends all of it; logs stay in DIR/log

Needs no systemd, no cgroups and no root: it is a cluster of the user who starts it. All state lies below DIR, all ports are
free ones on 127.0.0.1, so that several such clusters run side by side. A start after a stop begins afresh: empty queue,
empty accounts. The packages: apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server.

Nodes n1 and n2 have 2 CPUs each, however many the machine has, and half its memory each. Their names are known to SLURM
alone and do not resolve: a job over both nodes needs MASTER_ADDR=127.0.0.1. A node that dies is noticed within about 30
seconds and its jobs are requeued; a requeued job waits 10 seconds (``scontrol update jobid=J StartTime=now`` starts it at
once). With ``--no-accounting`` there is no slurmdbd and ``sacct`` fails, as on some small clusters.
"""

from __future__ import annotations

import argparse
import getpass
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd")
ACCOUNTING = ("mariadbd", "mariadb-install-db", "slurmdbd")
# A daemon carries its cluster's folder in its environment; so a pid that was recycled is never taken for it
MARK = "TL_SLURM_CLUSTER"
START_TIMEOUT_S = 90
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

SLURM_CONF = """\
ClusterName=tl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# How long a requeued job waits is the lifetime of a credential
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=3600
PropagateResourceLimits=NONE
DefMemPerCPU={memory_of_cpu_mb}
{accounting}
{nodes}
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
WITHOUT_ACCOUNTING = "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/munge.sock
JobAcctGatherType=jobacct_gather/linux"""
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""
ACCOUNTS_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';
"""


class Failure(Exception):
    """What the user is told in one line."""


# --- processes: told by what the kernel says of them, never by a pid that was written down


def environment_of(pid: int) -> dict[str, str]:
    """What a process was started with; empty where it is gone or somebody else's."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def arguments_of(pid: int) -> list[str]:
    """Its command line; empty where it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def all_pids() -> list[int]:
    """Of every process."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def daemons(folder: Path) -> dict[int, list[str]]:
    """Processes of the cluster's daemons, each with its command line."""
    marked = {pid: arguments_of(pid) for pid in all_pids() if environment_of(pid).get(MARK) == str(folder)}
    return {pid: arguments for pid, arguments in marked.items() if arguments and arguments[0]}


def running(folder: Path, name: str, node: str | None = None) -> list[int]:
    """Processes of one daemon, of a node's slurmd."""
    return [
        pid
        for pid, arguments in daemons(folder).items()
        if Path(arguments[0]).name == name and (node is None or node in arguments)
    ]


def on_nodes(folder: Path, node: str | None = None) -> list[int]:
    """Steps (slurmstepd) and the jobs' processes below them, of one node or of all."""
    nodes = NODES if node is None else (node,)
    logs = {str(folder / "log" / f"slurmd.{name}.log") for name in nodes}
    found = []
    for pid in all_pids():
        environment = environment_of(pid)
        of_job = environment.get("SLURM_CONF") == str(folder / "slurm.conf") and (
            environment.get("SLURMD_NODENAME") in nodes
        )
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


def end(find: Callable[[], list[int]], patience_s: float) -> None:
    """SIGTERM to what ``find`` finds until nothing is left, SIGKILL after ``patience_s``."""
    began, told = time.monotonic(), set[int]()
    while pids := find():
        late = time.monotonic() - began > patience_s
        if time.monotonic() - began > patience_s + 30:
            raise Failure(f"processes {pids} do not end")
        for pid in pids:
            if late or pid not in told:
                told.add(pid)
                send(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)


def send(pid: int, signum: int) -> None:
    """A signal to a process that may have ended meanwhile."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


# --- files of a cluster


def free_ports(n: int) -> Iterator[int]:
    """Different free ports of 127.0.0.1, below those that outgoing connections take."""
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
        n -= 1
        if not n:
            return
    raise Failure("no free ports between 20000 and 32000")


def write_files(folder: Path, accounting: bool) -> None:
    """A new cluster's configuration, with a key and ports of its own."""
    for old in ("munge", "state", "mariadb", "log", *(f"spool.{node}" for node in NODES)):
        shutil.rmtree(folder / old, ignore_errors=True)
    for new in ("munge", "state", "log"):
        (folder / new).mkdir(parents=True)
    slurmctld_port, slurmdbd_port, mariadb_port, *node_ports = free_ports(3 + len(NODES))
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 // len(NODES)
    host, values = socket.gethostname().split(".")[0], {"folder": folder, "user": getpass.getuser()}
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory={memory_mb}"
        for node, port in zip(NODES, node_ports, strict=True)
    ]
    values |= {"slurmdbd_port": slurmdbd_port, "mariadb_port": mariadb_port, "password": secrets.token_hex(16)}
    private(folder / "munge" / "munge.key", secrets.token_bytes(128))
    if accounting:
        private(folder / "slurmdbd.conf", SLURMDBD_CONF.format_map(values).encode())
        private(folder / "accounts.sql", ACCOUNTS_SQL.format_map(values).encode())
    else:
        (folder / "slurmdbd.conf").unlink(missing_ok=True)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=host,
            slurmctld_port=slurmctld_port,
            memory_of_cpu_mb=memory_mb // 2,
            nodes="\n".join(nodes),
            accounting=WITH_ACCOUNTING.format_map(values) if accounting else WITHOUT_ACCOUNTING,
            **values,
        )
    )


def private(path: Path, content: bytes) -> None:
    """A file that only its owner reads."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def value(path: Path, key: str) -> str:
    """Of a line ``key=value``."""
    (found,) = (line.partition("=")[2] for line in path.read_text().splitlines() if line.startswith(f"{key}="))
    return found


# --- verbs


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


def wait(folder: Path, name: str, process: subprocess.Popen[bytes] | None, ready: Callable[[], bool]) -> None:
    """Until a daemon answers; a failure with its log's last line where it ends instead."""
    began = time.monotonic()
    while not ready():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() - began > START_TIMEOUT_S:
            logs = sorted((folder / "log").glob(f"{name}*"), key=lambda path: path.stat().st_mtime)
            lines = [line for path in logs for line in path.read_text(errors="replace").splitlines()]
            how = "ended" if ended else f"did not answer within {START_TIMEOUT_S} s"
            raise Failure(f"{name} {how}: {(lines or ['no output'])[-1].strip()} -> see {folder / 'log'}")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_munged(folder: Path) -> None:
    munge = folder / "munge"
    files = (f"--{what}={munge / file}" for what, file in (
        ("socket", "munge.sock"), ("key-file", "munge.key"), ("pid-file", "munged.pid"), ("seed-file", "munged.seed"),
    ))  # fmt: skip
    # forced: it objects to folders that others may not enter, such as those of pytest
    process = launch(folder, "munged", "--foreground", "--force", "--num-threads=2", *files)
    wait(folder, "munged", process, (munge / "munge.sock").exists)


def start_mariadbd(folder: Path) -> None:
    data = folder / "mariadb"
    common = ["--no-defaults", f"--datadir={data}", f"--user={getpass.getuser()}"]
    if not data.is_dir():
        made = launch(
            folder, "mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"
        )
        if made.wait():
            shutil.rmtree(data, ignore_errors=True)
            wait(folder, "mariadb-install-db", made, lambda: False)
    port = value(folder / "slurmdbd.conf", "StoragePort")
    process = launch(
        folder, "mariadbd", *common, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder}/mariadb.sock",
        f"--pid-file={folder}/mariadbd.pid", f"--init-file={folder}/accounts.sql", "--innodb-flush-log-at-trx-commit=0",
    )  # fmt: skip
    wait(folder, "mariadbd", process, lambda: listens(int(port)))


def start_slurmdbd(folder: Path) -> None:
    # It looks for its own file beside slurm.conf
    process = launch(folder, "slurmdbd", "-D")
    port = int(value(folder / "slurmdbd.conf", "DbdPort"))
    wait(folder, "slurmdbd", process, lambda: listens(port))
    if not ask(folder, "sacctmgr", "-nP", "list", "cluster", "format=cluster").stdout.strip():
        added = ask(folder, "sacctmgr", "-i", "add", "cluster", "tl")
        if added.returncode:
            raise Failure(f"sacctmgr: {(added.stderr or added.stdout).strip()} -> see {folder / 'log'}")


def start_slurmctld(folder: Path) -> None:
    process = launch(folder, "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
    wait(folder, "slurmctld", process, lambda: "UP" in ask(folder, "scontrol", "ping").stdout)


def start(folder: Path, accounting: bool) -> str:
    """Start what does not run yet; wait until both nodes are idle."""
    packages = "slurm-wlm munge" + " slurmdbd mariadb-server" * accounting
    needed = (*DAEMONS, *(ACCOUNTING if accounting else ()))
    if missing := [name for name in needed if shutil.which(name, path=PATH) is None]:
        raise Failure(f"missing: {', '.join(missing)} -> apt-get install -y --no-install-recommends {packages}")
    if len(str(folder)) > 80:
        raise Failure(
            f"{folder}: {len(str(folder))} characters, expected at most 80 (sockets lie below it) -> a shorter one"
        )
    afresh = not daemons(folder)
    if afresh:
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, accounting)
    accounting = (folder / "slurmdbd.conf").exists()
    started = []
    try:
        for name in ("munged", *(("mariadbd", "slurmdbd") if accounting else ()), "slurmctld"):
            if not running(folder, name):
                globals()[f"start_{name}"](folder)
                started.append(name)
        for node in NODES:
            if not running(folder, "slurmd", node):
                launch(folder, "slurmd", "-D", "-N", node)
                started.append(f"slurmd of {node}")
        wait(folder, "slurmd", None, lambda: usable(folder))
    except (Failure, OSError, KeyboardInterrupt):
        if afresh:
            stop(folder)
        raise
    return f"started: {', '.join(started)}" if started else "runs already"


def usable(folder: Path) -> bool:
    """Whether every node takes jobs."""
    states = ask(folder, "sinfo", "-hN", "-o", "%N %T").stdout.split()
    return len(states) == 2 * len(NODES) and set(states[1::2]) <= {"idle", "mixed", "allocated"}


def stop(folder: Path) -> str:
    """End jobs and daemons, the controller first, so that nothing is started meanwhile."""
    before = daemons(folder)
    for name in ("slurmctld", "slurmd"):
        end(lambda name=name: running(folder, name), patience_s=10)
    end(lambda: on_nodes(folder), patience_s=2)
    for name in ("slurmdbd", "mariadbd", "munged"):
        end(lambda name=name: running(folder, name), patience_s=20)
    end(lambda: list(daemons(folder)), patience_s=5)
    return f"stopped: {len(before)} daemons" if before else "does not run"


def kill(folder: Path, node: str) -> str:
    """A node's death: its slurmd, its steps and their jobs at once."""
    if node not in NODES:
        raise Failure(f"node {node}: expected one of {', '.join(NODES)}")
    end(lambda: running(folder, "slurmd", node) + on_nodes(folder, node), patience_s=-1)
    return f"killed: {node}; start brings it back"


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
                said = "" if daemons(folder) else "does not run"
    except Failure as failure:
        sys.exit(f"error: {failure}")
    if said:
        sys.stderr.write(f"cluster in {folder}: {said}\n")
    if given.verb in ("start", "env"):
        sys.stdout.write(f"export SLURM_CONF={folder / 'slurm.conf'}\n")


if __name__ == "__main__":
    main()
