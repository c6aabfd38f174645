"""Turns of tasks handed to sbatch, by submitit's script and pickles, so that their jobs can be found again."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tl_experiments.errors import UserError
from tl_experiments.sweeps.cluster import UnansweredError
from tl_experiments.sweeps.slurm_queue import run, said, scripts
from tl_experiments.sweeps.slurm_turn import Turn

if TYPE_CHECKING:
    from submitit import SlurmExecutor

# Keys to look at, by words of sbatch's complaints
_KEYS = {
    "partition": "partition", "account": "account", "qos": "qos", "gres": "gpus_per_node", "feature": "constraint",
    "memory": "memory_gb", "time": "time_min", "option": "options", "cpu": "cpus_per_task",
}  # fmt: skip
_TASKS = "# tasks of tl: "  # the script's last line


def submit(executor: SlurmExecutor, turns: Sequence[Turn], name: str) -> list[str]:
    """Submit a job, or an array for several; returns the handles.

    As ``executor.submit_array``, but for the script's name, and in a session of its own: Ctrl-C is for us alone.

    Args:
        executor: With all parameters.
        turns: In order.
        name: Of the script, ``token-number``.

    Raises:
        UserError: sbatch refuses it.
        UnansweredError: It ended in another way, and the jobs may be there.
    """
    from submitit import SlurmJob
    from submitit.core.utils import DelayedSubmission

    executor.folder.mkdir(parents=True, exist_ok=True)
    pickles = [executor.folder / f"{name}-{number}.pkl" for number in range(len(turns))]
    for turn, pickle in zip(turns, pickles, strict=True):
        delayed = DelayedSubmission(turn)
        delayed.set_timeout(turn.time_min, executor.max_num_timeout)
        delayed.dump(pickle)
    if len(turns) > 1:
        executor.parameters["map_count"] = len(turns)
    text = executor._make_submission_file_text(executor._submitit_command_str, name)
    script = executor.folder / f"{name}.sh"
    script.write_text(f"{text.rstrip()}\n{_TASKS}{' '.join(turn.task.id for turn in turns)}\n", encoding="utf-8")
    number = _sbatch(script)
    handles = [number] if len(turns) == 1 else [f"{number}_{position}" for position in range(len(turns))]
    for handle, pickle in zip(handles, pickles, strict=True):
        SlurmJob(executor.folder, handle, [0]).paths.move_temporary_file(pickle, "submitted_pickle")
    SlurmJob(executor.folder, number, [0]).paths.move_temporary_file(script, "submission_file", keep_as_symlink=True)
    return handles


def find(tokens: Collection[str], folder: Path) -> dict[str, str]:
    """Task id -> handle, of those whose script in ``folder`` has one of these tokens in its name.

    Raises:
        UserError: SLURM does not answer.
    """
    found = {}
    for handle, path in scripts().items():
        script = folder / Path(path).name
        if script.name.partition("-")[0] in tokens and script.is_file():
            line = script.read_text(encoding="utf-8").splitlines()[-1]
            ids = line.removeprefix(_TASKS).split()
            found[ids[int(handle.partition("_")[2] or 0)]] = handle
    return found


def refused(what: str) -> UserError:
    """The error for what sbatch says."""
    what = re.sub(r"sbatch: (error: )?|allocation failure: |Batch job submission failed: ", "", what)
    if "configuration source" in what:
        return UserError("executor=slurm", f"sbatch: {what}", "run it where SLURM is set up, or set SLURM_CONF")
    keys = [f"executor.{key}" for word, key in _KEYS.items() if word in what.lower()]
    if "node configuration" in what:
        keys = [f"executor.{key}" for key in ("cpus_per_task", "memory_gb", "gpus_per_node", "constraint")]
    return UserError("executor=slurm", f"sbatch: {what}", f"change {', '.join(keys) or 'options of executor'}")


def _sbatch(script: Path) -> str:
    """The number that SLURM gives it."""
    done = run("sbatch", str(script))
    what = said(done)
    # a controller that answers too late may have taken it all the same
    if done.returncode > 0 and not re.search(r"timed out|Zero Bytes", what):
        raise refused(what.split("; ")[0])
    number = re.search(r"job (\d+)", done.stdout)
    if done.returncode or number is None:
        fix = "the same command looks for what was submitted and goes on"
        raise UnansweredError("executor=slurm", f"sbatch did not come to its end ({what})", fix)
    return number[1]
