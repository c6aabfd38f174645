"""A SLURM and a Ray cluster on this machine for the tests, and ``tl`` as a user of them runs it.

Nothing is skipped here: ``make test-cluster`` installs what is needed first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.sweeps import SWEEP, results

ROOT = Path(__file__).parents[2]
# A test that itself runs in a cluster must not find that one
OUTSIDE = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN", "RAY_"))}


class LocalCluster:
    """A cluster that ``scripts/{kind}_cluster.py`` keeps below ``folder``."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self._commands: list[subprocess.Popen[str]] = []

    def script(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script: ``script("start")``."""
        verb, *rest = arguments
        command = [sys.executable, str(ROOT / "scripts" / f"{self.kind}_cluster.py"), verb, str(self.folder), *rest]
        return subprocess.run(
            command, env={**OUTSIDE, **environment}, capture_output=True, text=True, timeout=180, check=False
        )

    def start(self, *options: str) -> None:
        """Start it, or what of it was killed."""
        started = self.script("start", *options)
        assert started.returncode == 0, started.stderr

    @property
    def environment(self) -> dict[str, str]:
        """In which programs find the cluster."""
        said = self.script("env")
        assert said.returncode == 0, said.stderr
        exports = (line.removeprefix("export ").partition("=") for line in said.stdout.splitlines())
        return {**OUTSIDE, **{key: value for key, _, value in exports}}

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command to its end, on a login node so to speak."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def processes(self, *arguments: str, **environment: str) -> list[int]:
        """Its processes with all of ``arguments`` on their command lines and this in their environment."""
        entries = {f"{key}={value}" for key, value in environment.items()}
        return [
            pid
            for pid, command in naming(self.folder).items()
            if set(arguments) <= {*command.split(), Path(command.partition(" ")[0]).name}
            and entries <= set(environment_of(pid))
        ]

    def tl(self, *arguments: str, log: Path) -> subprocess.Popen[str]:
        """``tl`` in the background; what it says goes to ``log``."""
        with log.open("a") as out:
            command = subprocess.Popen(
                [sys.executable, "-m", "tl_experiments", *arguments],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True,
                start_new_session=True,
            )  # fmt: skip
        self._commands.append(command)
        return command

    def end_commands(self) -> None:
        """End what a test that failed has left in the background."""
        for command in self._commands:
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
                command.wait()


def environment_of(pid: int) -> list[str]:
    """What a process was started with."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def naming(folder: Path) -> dict[int, str]:
    """Processes other than this one whose command line or environment names ``folder``, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if str(folder).encode() in command + b"\0" + (entry / "environ").read_bytes():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


@contextmanager
def short_folder(kind: str) -> Iterator[Path]:
    """A folder with a name short enough for sockets, which those of pytest are not; removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"tl-{kind}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def kept(kind: str, *options: str) -> Iterator[LocalCluster]:
    """A cluster that runs for a while; nothing of it may be left afterwards."""
    with short_folder(kind) as folder:
        cluster = LocalCluster(kind, folder)
        try:
            cluster.start(*options)
            yield cluster
        finally:
            cluster.end_commands()
            stopped = cluster.script("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert naming(folder) == {}


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalCluster]:
    """SLURM with nodes n1 and n2, and with accounting."""
    yield from kept("slurm")


@pytest.fixture(scope="session")
def slurm_without_accounting() -> Iterator[LocalCluster]:
    """SLURM in which sacct fails."""
    yield from kept("slurm", "--no-accounting")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalCluster]:
    """Ray with two nodes."""
    yield from kept("ray")


@pytest.fixture
def new_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder for a cluster that the test itself starts."""
    with short_folder("own") as folder:
        yield folder


@pytest.fixture(scope="session")
def local_results(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Results of the sweep on this machine, without a cluster."""
    out = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-m", "tl_experiments", "train", "-m", *SWEEP, "executor.threads_per_job=1"]
    done = subprocess.run([*command, f"output_dir={out}", "name=x"], env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return results(out)
