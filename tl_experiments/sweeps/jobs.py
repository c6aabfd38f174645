"""What a job is: its config, its identity, its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_experiments.config.compose import finish
from tl_experiments.config.optimization import Timm
from tl_experiments.config.schema import LrConfig, TrainConfig, TuneConfig
from tl_experiments.config.timm_names import check_backbone_name, check_optimizer_name
from tl_experiments.config.trackers import Trackers
from tl_experiments.config.typed import typed
from tl_experiments.errors import ConfigError
from tl_experiments.safe_text import redacted, redacted_text
from tl_experiments.training.identity import job_id, runs_folder

_CHANGES_NOTHING = re.compile(
    r"(executor|tracker|output_dir|retry_failed|dry_run|tune\.(trials|parallel)|feature_cache\.(dir|max_bytes)|debug=traceback|debug=none)\b"
)


@dataclass(frozen=True)
class Trial:
    """Where a job that may be pruned reports to.

    Args:
        study: Name of the search of its arm, in the journal of the sweep's folder.
        id: Of the trial in the journal.
    """

    study: str
    id: int


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        id: Hash of what changes the result; the name of its folder.
        overrides: The overrides that make it, in the order of the command line.
        config: The typed config.
        trial: That it is, of a search with a pruner.
    """

    id: str
    overrides: tuple[str, ...]
    config: TrainConfig
    trial: Trial | None = None


def make_job(overrides: Sequence[str], plain: dict[str, Any]) -> Job:
    """Check the config of one job and give it its identity.

    Raises:
        ConfigError: Anything wrong with the config, the backbone's name or its weights' path.
    """
    config = finish(plain)
    check_backbone_name(config.backbone.name)
    if isinstance(config.optimizer, Timm):
        check_optimizer_name(config.optimizer.algorithm)
    return Job(job_id(config), tuple(overrides), config)


def without_secrets(jobs: Sequence[Job]) -> list[Job]:
    """The jobs as they may be written down: without credentials in the trackers' options and the overrides."""
    return [
        replace(
            job,
            overrides=tuple(redacted_text(text) for text in job.overrides),
            config=replace(job.config, tracker=typed(Trackers, redacted(dataclasses.asdict(job.config.tracker)))),
        )
        for job in jobs
    ]


def sweep_folder(jobs: Sequence[Job], overrides: Sequence[str]) -> Path:
    """``output_dir/<name>``, or a readable slug of the overrides with their hash, so that the same command finds it."""
    config = jobs[0].config
    if any((job.config.name, runs_folder(job.config)) != (config.name, runs_folder(config)) for job in jobs):
        raise ConfigError("name", "swept, but a sweep has one folder", "give one name=, output_dir= and debug=")
    parent = runs_folder(config)
    if isinstance(config, LrConfig):
        parent /= "lr"
    if config.name is not None:
        return parent / config.name
    given = [re.sub(r"=choice\((.*)\)$", r"=\1", text) for text in overrides]  # see sweeps/command.py
    ours = [text for text in given if not _CHANGES_NOTHING.match(text)]
    words = "-".join(re.sub(r"^[\w./@]*?(\w+)=", r"\1=", text) for text in ours)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", words)[:60].strip("-_.")  # what needs no quotes on any command line
    if isinstance(config, TuneConfig):  # the same overrides are another sweep there
        slug = f"tune-{slug}".strip("-")
    digest = hashlib.sha256(json.dumps(sorted(ours)).encode()).hexdigest()[:8]
    return parent / (f"{slug}-{digest}" if slug else f"defaults-{digest}")
