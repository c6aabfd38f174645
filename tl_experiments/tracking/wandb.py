"""Weights & Biases, fed from the records: a sweep is a group, a freeze strategy a job type."""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tl_experiments.records import RECORD_FILE, RunRecord, write_atomically

_PUSHED_FILE = "wandb.json"
_INIT_TIMEOUT_S = 30


class WandbOptions(Protocol):
    """What ``conf/tracker/wandb.yaml`` says."""

    @property
    def project(self) -> str: ...

    @property
    def entity(self) -> str | None: ...

    @property
    def mode(self) -> str: ...


def push(folder: Path, options: WandbOptions) -> Iterator[str]:
    """Enter every finished run of a sweep that is not there yet; yields lines for the user.

    A tracker never costs a result: what fails online is written offline, and what fails altogether is said in a line.

    Args:
        folder: Of the sweep; its runs' files go to ``<folder>/wandb``.
        options: Project, entity and mode (``auto`` is online with an API key, offline without).
    """
    runs = [path.parent for path in sorted(folder.glob(f"*/{RECORD_FILE}"))]
    todo = [run for run in runs if not (run / _PUSHED_FILE).exists()]
    online = options.mode == "online" or (options.mode == "auto" and _has_key())
    offline_files = 0
    for run in todo:
        try:
            try:
                _push_run(run, folder, options, "online" if online else "offline")
            except Exception as error:
                if not online:
                    raise
                yield f"wandb: no answer ({_first_line(error)}); going on offline"
                online = False
                _forget_attempt()
                _push_run(run, folder, options, "offline")
        except Exception as error:
            yield f"wandb: {run.name} was not entered ({_first_line(error)}); its record is complete"
            return
        offline_files += not online
        write_atomically(run / _PUSHED_FILE, json.dumps({"mode": "online" if online else "offline"}) + "\n")
    if offline_files:
        yield f"wandb: runs written offline: {offline_files}; to upload them: wandb sync {folder}/wandb/offline-run-*"


def _push_run(run: Path, folder: Path, options: WandbOptions, mode: Any) -> None:
    import wandb

    record = RunRecord.read(run)
    # Staging areas default to the home folder; x_disable_meta keeps the command line, which may hold secrets, out.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
    entered = wandb.init(
        project=options.project,
        entity=options.entity,
        group=folder.name,
        job_type=record.arm["freeze_strategy"],
        name=f"{record.arm['backbone']} {record.arm['freeze_strategy']} seed {record.seed}",
        id=f"{folder.name[:60]}-{record.job_id}".replace("/", "_"),
        dir=folder,
        mode=mode,
        config={**record.config, "arm": dict(record.arm), "learning_rate": record.learning_rate},
        settings=wandb.Settings(
            x_disable_meta=True, disable_git=True, disable_code=True, console="off", silent=True,
            init_timeout=_INIT_TIMEOUT_S,
        ),
    )  # fmt: skip
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        entered.log({key: value for key, value in values.items() if value is not None}, step=values["step"])
    for split, metrics in record.metrics.items():
        for name, value in metrics.items():
            entered.summary[f"{split}/{name}"] = value
    for name in ("trained_parameters", "wall_clock_s", "pretraining_s", "peak_memory_bytes", "best_step"):
        entered.summary[name] = getattr(record, name)
    entered.finish()


def _forget_attempt() -> None:
    """The service of a run that could not begin holds its id; the next attempt gets a new service."""
    import wandb

    wandb.teardown()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
