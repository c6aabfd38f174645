"""Kill a sweep at random moments, run the same command again, and compare with a sweep that nobody killed.

    TL_SHARED_DATA=... python scripts/kill_sweep.py --kills 50 --write benchmarks/results/kills.json

Each kill is a SIGKILL to the whole process group of a sweep of four jobs, at a random moment between the first line
that any job enters and the expected end of the command. A sweep is killed several times, as on a machine that comes and
goes; when it has ended, its folder is compared with the uninterrupted one's, bit by bit, and the next sweep begins.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STRATEGIES = ["feature_extraction", "last_n_blocks", "lp_ft", "full"]
THREADS = 1  # a job's; it fixes the last bits of a CPU result
_COMPARED = ("metrics", "best_step", "last_step", "phases", "still_rising", "accumulation", "classes")
_PACKAGES = ("torch", "timm", "pytorch-lightning", "numpy", "tl-experiments")


def command(out: Path, overrides: list[str]) -> list[str]:
    """The sweep's command line."""
    return [
        *(sys.executable, "-m", "tl_experiments", "train", "-m", f"freeze_strategy={','.join(STRATEGIES)}"),
        *(f"executor.threads_per_job={THREADS}", "executor.jobs_per_device=2"),
        *("trainer.accelerator=cpu", "trainer.resume_interval_s=0", "name=sweep", f"output_dir={out}", *overrides),
    ]


def start(out: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Start the sweep in a process group of its own."""
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(command(out, overrides), stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the command, its server and its workers at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_a_line(process: subprocess.Popen[bytes], out: Path) -> None:
    """Until a job has entered something, or the command has ended."""
    before = sum(path.stat().st_mtime_ns for path in out.glob("sweep/*/metrics.jsonl"))
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if sum(path.stat().st_mtime_ns for path in out.glob("sweep/*/metrics.jsonl")) != before:
                return
        time.sleep(0.02)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of a job's metrics."""
    found = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line) | {"seconds": 0})
        except ValueError:  # cut off by the kill
            continue
    return found


def jobs(out: Path) -> list[Path]:
    """Folders of the sweep's jobs."""
    return sorted(path.parent for path in out.glob("sweep/*/start.json"))


def epochs_done(out: Path) -> dict[str, float]:
    """Job -> epochs that its metrics tell of."""
    return {folder.name: max((line["epoch"] for line in lines(folder)), default=0.0) for folder in jobs(out)}


def resumed_at(out: Path) -> dict[str, float]:
    """Job -> epochs behind the newest resume point; jobs that are done need none."""
    found = {}
    for folder in jobs(out):
        steps = [int(path.stem.partition("-")[2]) for path in folder.glob("resume-*.pt")]
        entered = lines(folder)
        a_step = next((line["epoch"] / line["step"] for line in entered if line["step"]), 0.0)
        if not (folder / "record.json").exists():
            found[folder.name] = max(steps, default=0) * a_step
    return found


def results(out: Path) -> dict[str, Any]:
    """Job -> everything that must be equal to the bit: metrics, curve, predictions and weights."""
    found = {}
    for folder in jobs(out):
        record = json.loads((folder / "record.json").read_text())
        files = ("predictions.parquet", "checkpoint.safetensors")
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
        found[folder.name] = {key: record[key] for key in _COMPARED} | digests | {"curve": lines(folder)}
    return found


def leftovers(out: Path) -> list[str]:
    """What a killed writer left and nobody removed."""
    patterns = (".*.tmp", "resume-*")
    return sorted(str(path.relative_to(out)) for pattern in patterns for path in (out / "sweep").rglob(pattern))


def killed_sweep(out: Path, overrides: list[str], kills: int, seconds: float, draw: random.Random) -> dict[str, Any]:
    """Kill a sweep up to ``kills`` times, then let it end; returns what is to be said of it."""
    said: dict[str, Any] = {"kills_s": [], "epochs_repeated": []}
    while len(said["kills_s"]) < kills:
        process = start(out, overrides)
        wait_for_a_line(process, out)
        moment = draw.uniform(0.0, seconds / (1 + len(said["kills_s"])))  # there is less and less to do
        try:
            process.wait(moment)
            break  # it had ended before
        except subprocess.TimeoutExpired:
            kill(process)
        said["kills_s"].append(round(moment, 2))
        done, points = epochs_done(out), resumed_at(out)
        said["epochs_repeated"].extend(round(done[job] - points[job], 3) for job in points)
    process = start(out, overrides)
    said["exit"] = process.wait()
    said["leftovers"] = leftovers(out)
    return said


def prove(folder: Path, overrides: list[str], kills: int, a_sweep: int, seed: int) -> dict[str, Any]:
    """Kill sweeps in ``folder`` until there were so many kills; the uninterrupted sweep comes first."""
    draw = random.Random(seed)
    whole = start(folder / "whole", overrides)
    wait_for_a_line(whole, folder / "whole")
    began = time.perf_counter()
    if code := whole.wait():
        raise SystemExit(f"the uninterrupted sweep ended with {code}; see {folder / 'whole.log'}")
    seconds = time.perf_counter() - began
    expected, sweeps, killed = results(folder / "whole"), list[dict[str, Any]](), 0
    while killed < kills:
        out = folder / f"killed_{len(sweeps)}"
        said = killed_sweep(out, overrides, min(a_sweep, kills - killed), seconds, draw)
        said["equal"] = said["exit"] == 0 and results(out) == expected
        sweeps.append(said)
        killed += len(said["kills_s"])
        sys.stderr.write(f"{killed} of {kills} kills, sweep {len(sweeps)}: {said}\n")
    return {
        "kills": killed,
        "kills_in_sweeps_that_ended_equal": sum(len(said["kills_s"]) for said in sweeps if said["equal"]),
        "most_epochs_repeated": max((most for said in sweeps for most in said["epochs_repeated"]), default=0.0),
        "leftovers": sum(len(said["leftovers"]) for said in sweeps),
        "seconds_of_training": round(seconds, 1),
        "command": command(Path("OUT"), overrides)[1:],
        "seed": seed,
        "sweeps": sweeps,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Read the command line; exit code 1 where any sweep ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--a-sweep", type=int, default=3, help="kills of one sweep, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="where the result goes, as JSON")
    parser.add_argument("overrides", nargs="*", help="of the sweep; default: MobileNetV2 on 300 photos of flowers")
    given = parser.parse_args()
    data = os.environ["TL_SHARED_DATA"]
    overrides = given.overrides or flowers(Path(data))
    with tempfile.TemporaryDirectory() as folder:
        said = prove(Path(folder), overrides, given.kills, given.a_sweep, given.seed)
    text = json.dumps(said, indent=1).replace(data, "$TL_SHARED_DATA") + "\n"
    if given.write:
        given.write.write_text(text)
    sys.stdout.write(text)
    good = said["kills_in_sweeps_that_ended_equal"] == said["kills"] and not said["leftovers"]
    sys.exit(0 if good and said["most_epochs_repeated"] <= 1 else 1)


def flowers(data: Path) -> list[str]:
    """A small real set and pretrained weights, at a size that keeps an epoch to seconds."""
    return [
        *("dataset=image_folder", f"dataset.root={data / 'flowers5'}", "dataset.shots=10", "trainer.max_epochs=4"),
        *("backbone=mobilenetv2_tf", f"backbone.weights={data / 'weights/tf_mobilenetv2_100_in1k.safetensors'}"),
        *("backbone.preprocessing.image_size=64", "trainer.batch_size=8"),
    ]


if __name__ == "__main__":
    main()
