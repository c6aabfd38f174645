"""How long planning and submitting 100 jobs to SLURM takes, as a user sees it (bar submit).

    python benchmarks/submission.py    # about 2 minutes; needs SLURM's packages, see scripts/slurm_cluster.py

From Enter until SLURM has the last job. The cluster is that of the script, on this machine; its nodes are drained, so
that nothing runs beside what is measured. One sbatch for 100 jobs stands beside it as the least that any way must take.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Report, Row, Times, arguments, spread

TL = [sys.executable, "-m", "tl_experiments"]
SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm_cluster.py"
JOBS = 100
SWEEP = [
    "backbone=test_resnet", "backbone.preprocessing.image_size=32", "backbone.weights=random", "dataset.shots=1",
    "trainer.max_epochs=1", "trainer.accelerator=cpu", "feature_cache=off", "seed=range(25)",
    "freeze_strategy=feature_extraction,last_n_blocks,full,from_scratch", "executor=slurm", "executor.cpus_per_task=1",
    "name=bench",
]  # fmt: skip
LIMIT_S = 120


def submitted(folder: Path) -> int:
    """Tasks of the sweep in ``folder`` that SLURM has."""
    try:
        ledger = json.loads((folder / "outputs" / "bench" / "sweep.json").read_text())
    except FileNotFoundError:
        return 0
    return sum(bool(task["handle"]) for task in ledger["tasks"])


def ours() -> float:
    """Seconds until all jobs are with SLURM, which then are cancelled."""
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as name:
        folder = Path(name)
        with (folder / "log").open("w") as log:
            started = time.perf_counter()
            command = subprocess.Popen([*TL, "train", "-m", *SWEEP], cwd=folder, stdout=log, stderr=log)
            while submitted(folder) < JOBS:
                if command.poll() is not None or time.perf_counter() - started > LIMIT_S:
                    command.kill()
                    raise SystemExit(f"not all jobs were submitted:\n{(folder / 'log').read_text()[-3000:]}")
                time.sleep(0.02)
            taken = time.perf_counter() - started
            command.send_signal(signal.SIGINT)
            command.wait()
        subprocess.run([*TL, "cancel", "outputs/bench"], cwd=folder, check=True, capture_output=True)
    return taken


def sbatch_alone() -> float:
    """Seconds of one sbatch for as many jobs."""
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as folder:
        started = time.perf_counter()
        command = ["sbatch", "--parsable", f"--array=0-{JOBS - 1}", "--wrap=true"]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        taken = time.perf_counter() - started
    subprocess.run(["scancel", done.stdout.strip()], check=True)
    return taken


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__, repeats=5).parse_args()
    report = Report("submission", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-slurm-") as folder:
        subprocess.run([sys.executable, SCRIPT, "start", folder], check=True, stdout=subprocess.DEVNULL)
        try:
            os.environ["SLURM_CONF"] = str(Path(folder, "slurm.conf"))
            drain = ["scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=benchmark"]
            subprocess.run(drain, check=True)
            ours()  # the first one compiles and warms the system's cache
            times: dict[str, Times] = {"ours": [], "sbatch": []}
            for _ in range(2 if given.short else given.repeats):
                times["ours"].append(ours())
                times["sbatch"].append(sbatch_alone())
        finally:
            subprocess.run([sys.executable, SCRIPT, "stop", folder], check=True, stdout=subprocess.DEVNULL)
    report.details["seconds"] = times
    report.add(
        Row(
            bar="submit",
            what=f"plan and submit {JOBS} jobs to SLURM",
            peer="the clock",
            sense="<=",
            target=5.0,
            unit="s",
            limit="one sbatch: " + ", ".join(f"{one:.2f} s" for one in times["sbatch"]),
            **spread(times["ours"]),
        )
    )
    sys.stderr.write(f"{report.write()}\n")


if __name__ == "__main__":
    main()
