"""What a run leaves behind. Standard library only: records are read where torch is not installed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_experiments.errors import StorageError, UserError
from tl_experiments.safe_text import redacted

SCHEMA_VERSION = 1
RECORD_FILE = "record.json"
START_FILE = "start.json"  # what is known when a run begins; trackers follow it, and metrics.jsonl, and the record
SWEEP_FILE = "sweep.json"  # in the folder of a sweep, which holds a folder a job
METRICS_FILE = "metrics.jsonl"
STACKS_FOLDER = "stacks"  # of a sweep: resume points of runs that are trained in one computation

# Config keys that change no result: where a job runs, who watches, where it is written.
NOT_IN_THE_RESULT = frozenset(
    {
        *(
            "executor",
            "tracker",
            "name",
            "output_dir",
            "print_layout",
            "retry_failed",
            "dry_run",
            "tuning_seed",
            "tune",
        ),
        *("feature_cache.name", "feature_cache.dir", "feature_cache.max_bytes", "feature_cache.hold_max_bytes"),
        *("debug.name", "debug.traceback", "dataset.preload_max_bytes", "dataset.download"),
        *("trainer.num_workers", "trainer.eval_batch_size", "trainer.checkpoint"),
        *("trainer.on_out_of_memory", "trainer.resume_interval_s", "trainer.timeout_s"),
    }
)


def write_atomically(path: Path, content: bytes | str, *, sync_folder: bool = True) -> Path:
    """Write a file whole or not at all: a reader sees the old file or the new one, also after a crash.

    The temporary file stands in the same folder, so that a full ``$TMPDIR`` or another disk cannot matter. File and
    folder are on the disk when this returns: a job that was called done is done after a power cut too.

    Args:
        path: Of the file.
        content: Of the file.
        sync_folder: Put its name on the disk as well; not needed where a later file in the same folder is written so.

    Raises:
        StorageError: The disk is full; the old file is as it was.
    """
    # what was no UTF-8 in a path is written as an escape, which JSON reads back as it was
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:  # not mkstemp, whose files only their owner may read
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if sync_folder:
            _sync_folder(path.parent)
    return path


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that one process writes; it outlives that process from here on.

    A kill or a full disk can leave a part of the line, which readers must leave out.

    Raises:
        StorageError: The disk is full.
    """
    with storing(path), path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(line + "\n")


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Where the body finds the disk full, say which file and how little is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = "no space is left" if error.errno == errno.ENOSPC else "the quota is used up"
        raise StorageError(
            str(path), f"{why}, {free_bytes(path.parent):,} bytes are free", "make room, then run the same command"
        ) from error


def free_bytes(folder: Path) -> int:
    """What may still be written into ``folder``, or where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def remove_stale_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``; what a living process writes stays."""
    for path in folder.glob(".*.tmp"):
        writer = re.fullmatch(r"(\d+)-[0-9a-f]+", path.name.split(".")[-2])
        if writer and not _is_another_living(int(writer[1])):
            path.unlink(missing_ok=True)


def remove_resume_points(folder: Path) -> None:
    """A run that is done needs none; also after it was killed between its record and their removal."""
    for path in folder.glob("resume-*"):
        path.unlink(missing_ok=True)


def _is_another_living(process: int) -> bool:
    if process == os.getpid():  # of an earlier process with our number: this one writes nothing at the moment
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Put a rename on the disk, where the file system can: 10 us to some ms beside the fsync of the file."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class LrCurve:
    """One learning-rate range test.

    Args:
        arm: As in ``RunRecord``.
        config: As in ``RunRecord``.
        seed: Of the test.
        optimizer: Under which name rules are looked up.
        rule: The base rate that a run of this config would have; None where the strategy has no rule for the optimizer.
        phase: Number of the strategy's phase that was tested.
        learning_rates: Base rate of each step, rising.
        losses: Training loss of each step, before its update.
        environment: As in ``RunRecord``.
    """

    arm: Mapping[str, str]
    config: Mapping[str, Any]
    seed: int
    optimizer: str
    rule: float | None
    phase: int
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    environment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run.

    Args:
        job_id: Hash of everything in the config that changes the result.
        config: The whole config as plain values.
        arm: What is compared: ``dataset``, ``backbone``, ``head``, ``freeze_strategy``, each as a short text.
        seed: Seed of head, data order and label subset.
        classes: Class names in label order.
        data: ``fingerprint``, ``sizes`` (images a split), ``labels_spent`` (train + val), ``notes``, ``skipped``
            (``item`` and ``reason`` of each image that was left out), ``location`` (option of the dataset -> absolute
            path, see ``data.location``; older records lack it).
        metrics: Split (``val``, ``test``, ``test/<name>`` of further test sets) -> metric -> value, as
            ``metrics.scores.summary`` has them; what means nothing for a split is left out. Val selected the epoch;
            test was read once, after that.
        best_step: Optimizer step of the weights that were kept (0: before the last phase's first step).
        last_step: Optimizer steps that were done; fewer than planned where early stopping ended the run.
        accumulation: Parts in which batches were computed in the end; more than configured where memory ran out.
        phases: Per phase: ``first_step``, ``steps``, ``trained_parameters``, ``learning_rates``, ``norm_stats``.
        trained_parameters: Elements of the parameters that trained in any phase.
        total_parameters: Elements of all parameters.
        learning_rate: Base learning rate, after the strategy's rule and ``optimizer.lr_factor``; 0 where the head was
            solved, without steps.
        weights: Where the backbone's weights came from (``source``, ``sha256``, on the hub ``repo`` and ``commit``), an
            account of their tensors (``matched`` of ``total``, ``missing``, ``unexpected``, ``resized``, ...), and the
            ``lineage`` of own runs behind them. See ``WeightsReport``.
        still_rising: Whether val accuracy was still at a new best in the last quarter of the epochs.
        wall_clock_s: Seconds from the start of the run to its record; of runs trained in one computation, the run's
            share.
        pretraining_s: Seconds of own pretraining behind the weights, 0 for weights that came from elsewhere.
        peak_memory_bytes: Peak of device memory on a GPU, of the process's resident memory on a CPU; of several devices
            the largest.
        environment: Versions, processor, device, number of devices, precision and threads that ran it.
        notes: What was handled on the way, in whole sentences.
        work: What the run cost, over all its processes: ``images_decoded`` (from files), ``images_encoded`` (forward
            passes of a frozen prefix to fill the cache), ``cached_phases`` (numbers of the phases trained on cached
            activations), ``together`` (runs trained in one computation, this one included).
    """

    job_id: str
    config: Mapping[str, Any]
    arm: Mapping[str, str]
    seed: int
    classes: tuple[str, ...]
    data: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    best_step: int
    last_step: int
    accumulation: int
    phases: tuple[Mapping[str, Any], ...]
    trained_parameters: int
    total_parameters: int
    learning_rate: float
    weights: Mapping[str, Any]
    still_rising: bool
    wall_clock_s: float
    pretraining_s: float
    peak_memory_bytes: int
    environment: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    work: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def best_epoch(self) -> float:
        """Passes over the training images at ``best_step``."""
        last = self.phases[-1]
        return self.best_step * self.config["trainer"]["max_epochs"] / (last["first_step"] + last["steps"])

    @property
    def is_debug_run(self) -> bool:
        """Whether ``debug=`` changed what was trained on or measured."""
        debug = self.config.get("debug")
        keys = ("images_per_split", "evaluate_on_train", "profile")
        return isinstance(debug, Mapping) and any(debug.get(key) for key in keys)

    def write(self, folder: Path) -> Path:
        """Write ``record.json`` into ``folder``, atomically; the presence of the file means that the run is done."""
        text = json.dumps(redacted(dataclasses.asdict(self)), indent=2, sort_keys=True, ensure_ascii=False)
        return write_atomically(folder / RECORD_FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the record of a run's folder.

        Raises:
            UserError: The file is missing, damaged, or of another schema version.
        """
        path = folder / RECORD_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["schema_version"]
            if version != SCHEMA_VERSION:
                raise UserError(
                    str(path),
                    f"schema version {version}, expected {SCHEMA_VERSION}",
                    "read it with the version of tl_experiments that wrote it",
                )
            sequences = {key: tuple(content[key]) for key in ("classes", "phases", "notes")}
            return cls(**{**content, **sequences})
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "run the job again, or remove its folder"
            if (folder / SWEEP_FILE).is_file():
                fix = f"it is the folder of a sweep: give one of its jobs, {folder}/<job>"
            raise UserError(str(path), f"no readable record ({error})", fix) from None
