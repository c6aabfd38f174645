"""A Ray cluster of two nodes on this machine, for tests and for trying ``executor=ray``.

    python scripts/ray_cluster.py start DIR            # starts what does not run yet, about ten seconds
    eval "$(python scripts/ray_cluster.py env DIR)"    # sets RAY_ADDRESS: executor.address=auto finds the cluster
    python scripts/ray_cluster.py kill DIR             # the second node dies: SIGKILL to its raylet and workers
    python scripts/ray_cluster.py stop DIR             # ends all of it; logs stay in DIR

All of Ray's files lie below DIR, nothing in the home folder, and its ports are free ones, so that several such clusters
run side by side. There is no dashboard and there are no usage statistics. Ray listens on all of the machine's
interfaces, so whoever speaks to the cluster must hold its token, a file in DIR that ``env`` names. Each node has 2
CPUs, however many the machine has. Needs the package's extra: pip install 'tl-experiments[ray]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from cluster_parts import end, environment, free_ports, marked, private

MARK, NODE = "TL_RAY_CLUSTER", "TL_RAY_NODE"
NODES = ("head", "second")
OBJECT_STORE_BYTES = 100_000_000
# Ray puts its sockets up to 65 characters below its folder; the kernel takes 107
MAX_PATH = 40


class ClusterError(Exception):
    """What the user is told in one line."""


def surroundings(folder: Path) -> dict[str, str]:
    """What a program sets to find this cluster and to be let in."""
    address = (folder / "address").read_text().strip()
    return {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}


def running(folder: Path, node: str | None = None) -> list[int]:
    """Processes of the cluster, of one node or of all; workers and what they started are among them."""
    return [pid for pid in marked(MARK, str(folder)) if node is None or environment(pid).get(NODE) == node]


def launch(folder: Path, node: str) -> None:
    """``ray start`` for a node, whose processes go on in the background."""
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "runtime-env-agent-port",
    )
    ports = [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    port = (folder / "address").read_text().rpartition(":")[2].strip()
    where = ["--address", f"127.0.0.1:{port}"]
    if node == "head":
        (client,) = free_ports(1)
        where = ["--head", f"--port={port}", f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
        where += ["--include-dashboard=false"]
    own = {"RAY_USAGE_STATS_ENABLED": "0", MARK: str(folder), NODE: node}
    own["RAY_worker_niceness"] = "0"  # Ray's own 15 starves workers on a machine that does something else as well
    # Ray's processes change their titles; this keeps the environment in front of which the title stands
    own["SPT_NOENV"] = "1"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    size = ["--num-cpus=2", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    rest = ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats", "--log-style=record"]
    started = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *size, *ports, *rest],
        env={**kept, **surroundings(folder), **own},
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if started.returncode:
        lines = (started.stderr + started.stdout).strip().splitlines()
        raise ClusterError(f"ray start of the {node} node: {(lines or ['no output'])[-1]} -> see {folder}")


def check(folder: Path) -> None:
    """That a cluster can be started there."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(f"ray is not installed for {sys.executable} -> pip install 'tl-experiments[ray]'")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "token").exists():
        raise ClusterError(f"{folder}: holds other files, expected an empty or new folder, or an earlier cluster's")
    if len(str(folder)) > MAX_PATH:
        raise ClusterError(
            f"{folder}: {len(str(folder))} characters, expected {MAX_PATH} at most, for sockets -> shorter"
        )


def start(folder: Path) -> str:
    """Start the nodes that do not run yet."""
    check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not running(folder, "head"):
        stop(folder)  # a node without its head is of no use
        for old in folder.glob("session_*"):
            old.unlink() if old.is_symlink() else shutil.rmtree(old)
        (port,) = free_ports(1)
        (folder / "address").write_text(f"127.0.0.1:{port}\n")
        private(folder / "token", secrets.token_hex(32).encode())
    missing = [node for node in NODES if not running(folder, node)]
    try:
        for node in missing:
            launch(folder, node)
    except BaseException:
        if "head" in missing:
            stop(folder)
        raise
    return f"started {', '.join(missing)}" if missing else "runs already"


def stop(folder: Path) -> str:
    """End all of its processes, the second node's first."""
    found = [node for node in NODES if running(folder, node)]
    end(lambda: running(folder, "second"), patience_s=5)
    end(lambda: running(folder), patience_s=5)
    return f"stopped {', '.join(found)}" if found else "does not run"


def kill(folder: Path) -> str:
    """The second node's death: raylet and workers at once."""
    end(lambda: running(folder, "second"), patience_s=0)
    return "killed the second node; start brings it back"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("start", "stop", "env", "kill"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    given = parser.parse_args()
    folder = given.folder.absolute()
    try:
        match given.verb:
            case "start":
                said = start(folder)
            case "stop":
                said = stop(folder)
            case "kill":
                said = kill(folder)
            case "env":
                if not running(folder):
                    raise ClusterError(f"no cluster runs in {folder} -> start it")
                said = "runs"
    except (ClusterError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"error: {error}")
    sys.stderr.write(f"cluster in {folder}: {said}\n")
    if given.verb in ("start", "env"):
        sys.stdout.writelines(f"export {key}={value}\n" for key, value in surroundings(folder).items())


if __name__ == "__main__":
    main()
