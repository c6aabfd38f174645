"""What SLURM says of jobs, by its own commands."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from tl_experiments.sweeps.cluster import Condition, UnansweredError

logger = logging.getLogger(__name__)

_TIMEOUT_S = 60.0
_FIELDS = "JobArrayID:|,State:|,TimeLeft:|,NodeList:|,exit_code:|,Reason:|"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"}
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
_ITS_OWN = {"COMPLETED", "FAILED", "OUT_OF_MEMORY"}  # ends for which a job's own doing may be the reason
# Reasons for waiting that pass by themselves; a requeued job begins after a while
_ORDINARY = {
    *("None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning", "Prolog", "Licenses"),
    *("Reservation", "NodeDown", "WaitingForScheduling"),
}
UNKNOWN = Condition("ended", "SLURM does not know it any more", outside=True)


class Queue:
    """Looks at the queue; what it had to say once it does not say again."""

    def __init__(self) -> None:
        self._silent = False
        self._told: set[str] = set()

    def conditions(self, handles: Sequence[str]) -> dict[str, Condition]:
        """How each stands: one call of squeue for all, and one of sacct for those that squeue has forgotten.

        Empty while the controller does not answer, which is told once.
        """
        ids = ",".join(sorted({handle.partition("_")[0] for handle in handles}))
        looked = run("squeue", "--noheader", "--states=all", "--array", f"--jobs={ids}", f"--Format={_FIELDS}")
        if looked.returncode and "Invalid job id" not in looked.stderr:
            if not self._silent:
                logger.warning("squeue: %s: tasks are followed again when it answers", said(looked))
            self._silent = True
            return {}
        self._silent = False
        found = squeue_conditions(looked.stdout)
        if forgotten := [handle for handle in handles if handle not in found]:
            # without accounting it fails, and nothing is known of them
            ended = run("sacct", "--noheader", "--parsable2", "--format=JobID,State,ExitCode", f"--jobs={ids}")
            accounts = sacct_conditions(ended.stdout) if not ended.returncode else {}
            found |= {handle: accounts.get(handle, UNKNOWN) for handle in forgotten}
        conditions = {handle: found[handle] for handle in handles}
        self._tell_who_waits(conditions)
        return conditions

    def _tell_who_waits(self, conditions: Mapping[str, Condition]) -> None:
        waiting = [(one.detail, handle) for handle, one in conditions.items() if one.state == "waiting"]
        reasons = {reason: handle for reason, handle in reversed(waiting) if reason.split(",")[0] not in _ORDINARY}
        for reason, handle in reasons.items():
            if reason not in self._told:
                self._told.add(reason)
                logger.warning("SLURM holds job %s back: %s; scontrol show job %s", handle, reason, handle)


def cancel(handles: Iterable[str]) -> None:
    """Take jobs from the queue, or end them; those that have ended are left out.

    Raises:
        UnansweredError: Some may go on.
    """
    handles = list(handles)
    if handles and (done := run("scancel", "--quiet", *handles)).returncode:
        raise UnansweredError("slurm", f"scancel: {said(done)}", "tl cancel when SLURM answers")


def scripts() -> dict[str, str]:
    """Handle -> path of the script, of our jobs that have not ended.

    Raises:
        UnansweredError: The controller does not say.
    """
    done = run("squeue", "--me", "--noheader", "--array", "--Format=JobArrayID:|,Command:")
    if done.returncode:
        raise UnansweredError("slurm", f"squeue: {said(done)}", "again when SLURM answers")
    pairs = (line.strip().partition("|") for line in done.stdout.splitlines())
    return {handle: path for handle, _, path in pairs}


def is_preempted(handle: str) -> bool:
    """Whether a running job was told that another needs its place."""
    state, _, since = run("squeue", "--noheader", f"--jobs={handle}", "--Format=State:|,PreemptTime:").stdout.partition(
        "|"
    )
    return state.strip() == "RUNNING" and since.strip() not in ("", "N/A")


def put_back(handle: str) -> None:
    """Into the queue; SLURM ends what runs of it."""
    run("scontrol", "requeue", handle)


def largest_array() -> int:
    """How many jobs an array may have."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config").stdout, re.MULTILINE)
    return max(1, int(match[1])) if match else 1


def cluster_name() -> str:
    """Of the cluster that this machine's commands speak to.

    Raises:
        UnansweredError: The controller does not say.
    """
    done = run("scontrol", "show", "config")
    match = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    if match is None:
        raise UnansweredError("slurm", f"scontrol: {said(done)}", "again when SLURM answers")
    return match[1]


def squeue_conditions(listing: str) -> dict[str, Condition]:
    """Handle -> condition, from lines of squeue with the fields of ``Queue``."""
    found = {}
    for line in listing.splitlines():
        parts = line.split("|")
        if len(parts) < 6:
            continue
        handle, state, left, nodes, status, reason = (part.strip() for part in parts[:6])
        if state in _WAITING:
            found[handle] = Condition("waiting", reason, _seconds(left))
        elif state in _ENDED:
            number = int(status) if status.isdecimal() else 0
            code = 128 + os.WTERMSIG(number) if os.WIFSIGNALED(number) else os.waitstatus_to_exitcode(number)
            # srun could not start it: the node's doing, though a signal is named
            found[handle] = _ended(handle, reason if reason == "JobLaunchFailure" else state, state, code)
        else:
            found[handle] = Condition("running", nodes, _seconds(left))
    return found


def sacct_conditions(listing: str) -> dict[str, Condition]:
    """Handle -> condition, from lines ``JobID|State|ExitCode`` of sacct for jobs that the queue has forgotten.

    Those of a job are followed by those of its steps. srun's tells of a signal; of the job's own code sacct takes off
    128.
    """
    words: dict[str, str] = {}
    codes: dict[str, int] = {}
    for line in listing.splitlines():
        name, word, status = line.split("|")[:3]
        job, _, step = name.partition(".")
        if step in ("", "0"):
            code, _, signum = status.partition(":")
            codes[job] = 128 + int(signum) if int(signum or 0) else int(code)
        if not step and word.split()[0] in _ENDED:  # the accounts come late
            words[job] = word
    return {
        handle: _ended(handle, word.split()[0], word, codes[job])
        for job, word in words.items()
        for handle in _members(job)
    }


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command of SLURM complains of, on one line."""
    lines = [re.sub(r"^\w+: (error: )?|Batch job submission failed: ", "", line) for line in done.stderr.splitlines()]
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or f"exit code {done.returncode}"


def _ended(handle: str, state: str, whole: str, code: int) -> Condition:
    return Condition("ended", f"{_death(state, whole, code)} (SLURM job {handle})", outside=state not in _ITS_OWN)


def _death(state: str, whole: str, code: int) -> str:
    """Why a job ended, to somebody who knows the config.

    Args:
        state: SLURM's word.
        whole: Likewise, with what stands behind it.
        code: Exit code as a shell shows it: above 128 it was a signal.
    """
    match state:
        case "OUT_OF_MEMORY":
            return "killed by SLURM: OUT_OF_MEMORY -> raise executor.memory_gb"
        case "TIMEOUT":
            return "killed by SLURM: TIMEOUT before it could write a resume point -> raise executor.signal_delay_s"
        case "CANCELLED":
            return f"cancelled: {whole}"
        case "NODE_FAIL":
            return "its node failed: NODE_FAIL"
        case "JobLaunchFailure":
            return "its node could not start it: JobLaunchFailure"
        case "COMPLETED":
            return "exit(0) before it was done"
        case "FAILED" if code > 128:
            number = code - 128
            name = signal.Signals(number).name if number in {int(one) for one in signal.Signals} else f"signal {number}"
            return f"killed by {name}" + (": out of memory? raise executor.memory_gb" if name == "SIGKILL" else "")
        case "FAILED":
            return f"exit code {code} before it was done"
    return f"ended by SLURM: {whole}"


def _members(job: str) -> list[str]:
    """Handles of ``12``, ``12_3`` or ``12_[3,5-7%2]``."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(%\d+)?\]", job)
    if match is None:
        return [job]
    ranges = [part.partition("-") for part in match[2].split(",")]
    return [f"{match[1]}_{n}" for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]


def _seconds(text: str) -> float | None:
    """Of ``[D-][H:]M:S``; None of words such as UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command of SLURM to its end; one that is missing or hangs is one that failed."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S,
            start_new_session=True,  # Ctrl-C is for us alone
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: {error}")
