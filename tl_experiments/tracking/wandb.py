"""Weights & Biases: a sweep is a group, a freeze strategy a job type, a job a run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_experiments.errors import first_line
from tl_experiments.safe_text import redacted_text
from tl_experiments.tracking.entries import ARM, Entered, cause, config, new_points, run_name, short, summary
from tl_experiments.tracking.runs import Run

if TYPE_CHECKING:
    from tl_experiments.tracking.wandb_tables import Pictures

_NAME = "wandb"
_ANSWER_TIMEOUT_S = 5
_TIMEOUT_S = 15  # of W&B's own waiting, at a run's start and end; WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT change it
_TAG_LIMIT = 64  # W&B's


@dataclass
class _Open:
    """A run that W&B has begun and not completed."""

    run: Run
    entered: Any  # wandb's run
    step: int  # last step entered
    ending: threading.Thread | None = None
    complete: bool = False
    shown: bool = False  # its tables are entered
    files: list[Any] = field(default_factory=list)  # wandb's artifacts that are to arrive
    failure: str | None = None

    def end(self, code: int) -> None:
        """Complete it in a thread: that waits for the upload, long if the server is gone, and the others go on."""

        def finish() -> None:
            try:
                try:
                    for file in self.files:
                        file.wait()
                finally:
                    self.entered.finish(code)
                self.complete = True
            except Exception as error:  # a time-out, above all; the run stays in the list of what is missing
                self.failure = redacted_text(first_line(error))

        self.ending = threading.Thread(target=finish, daemon=True)
        self.ending.start()


class Wandb:
    """One W&B run a job, several open at once; offline where there is no key or no answer.

    Args:
        folder: Of the sweep; W&B's files go to ``<folder>/wandb``.
        say: Takes lines for the user.
        project: W&B project.
        entity: W&B team or user.
        mode: ``auto`` is online with an API key and a server that answers, offline without.
        images: Predictions shown one by one, of each test set of a finished run.
        artifacts: What of a finished run is stored: ``checkpoint``, ``predictions``, ``record``.
        pictures: A run's config and ids of images -> small pictures.
    """

    whole = False

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        pictures: Pictures,
        *,
        project: str,
        entity: str | None,
        mode: str,
        images: int,
        artifacts: Sequence[str],
    ) -> None:
        self._folder, self._say, self._pictures = folder, say, pictures
        self._project, self._entity, self._mode = project, entity, mode
        self._images, self._artifacts = images, artifacts
        self._online: bool | None = None  # not tried yet
        self._open: dict[str, _Open] = {}
        self._offline: set[str] = set()  # runs whose files somebody has to upload
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        for name in ("WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"):
            os.environ.setdefault(name, str(_TIMEOUT_S))
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # their defaults are in the home folder
            os.environ.setdefault(name, str(folder / "wandb"))

    def update(self, run: Run) -> None:
        if not run.facts or Entered.read(run, _NAME).completes(run):
            return
        there = self._open.get(run.id)
        if there is None:
            there = self._open[run.id] = self._begin(run)
        if there.ending is not None:
            return
        there.run = run
        for step, values in new_points(run, there.step):
            there.entered.log(values, step=step, commit=True)
            there.step = step
        if run.record is not None and not there.shown:
            self._show(run, there)
            there.shown = True
        if run.ended:
            # The cause also where there is none: an earlier attempt may have had one
            there.entered.summary.update({"state": run.state, "cause": cause(run) or "", **summary(run)})
            there.end(0 if run.state in ("ok", "pruned") else 1)

    def flush(self) -> None:
        """Remember the runs that are complete."""
        for there in list(self._open.values()):
            if there.complete:
                self._remember(there, there.run.state)
                if there.entered.offline:
                    self._offline.add(there.run.id)
                del self._open[there.run.id]

    def close(self) -> None:
        """Wait until all that has ended is uploaded; the caller sets the limit."""
        for there in list(self._open.values()):
            if there.ending is not None:
                there.ending.join()
            if there.failure is not None:
                self._say(f"wandb: {run_name(there.run)}: {there.failure}")
                there.failure = None
        self.flush()

    def missing(self) -> Iterator[str]:
        """How to upload what is not: runs written offline, and those whose server does not answer any more."""
        late = [Path(there.entered.settings.sync_dir).name for there in self._open.values()]
        if self._offline:
            where = self._folder / "wandb" / "offline-run-*"
            yield f"wandb: runs written offline: {len(self._offline)}; to upload them: wandb sync {where}"
        if late:
            paths = " ".join(str(self._folder / "wandb" / name) for name in late)
            yield f"wandb: runs not uploaded yet: {len(late)}; to upload them: wandb sync --include-online {paths}"

    def holds(self, run: Run) -> Entered:
        """What is there; of a run that was written offline nothing, where the server can be reached now."""
        entered = Entered.read(run, _NAME)
        if entered.offline:
            if self._reaches():
                return Entered()
            self._offline.add(run.id)
        return entered

    def forget(self, run: Run) -> None:
        """Enter the run again: its tables and summary anew, of its curve what the server lacks."""
        Entered.forget(run, _NAME)

    def _remember(self, there: _Open, state: str | None) -> None:
        entered = there.entered
        Entered(state=state, step=there.step, id=entered.id, offline=bool(entered.offline)).write(there.run, _NAME)

    def _show(self, run: Run, there: _Open) -> None:
        """Tables of its predictions, in a row of their own after the curve, and its files."""
        from tl_experiments.tracking import wandb_tables

        try:
            if found := wandb_tables.views(run, self._images, self._pictures):
                there.entered.log(found, commit=True)
            for artifact, aliases in wandb_tables.artifacts(run, self._artifacts, self._folder.name):
                file = there.entered.log_artifact(artifact, aliases=aliases)
                if not there.entered.offline:
                    there.files.append(file)
        except Exception as error:  # its numbers must not be lost for that
            self._say(f"wandb: {run_name(run)}: tables and files not entered ({redacted_text(first_line(error))})")

    def _reaches(self) -> bool:
        """Whether runs go to the server; tried once."""
        if self._online is None:
            self._online = self._mode != "offline" and self._reachable()
        return self._online

    def _begin(self, run: Run) -> _Open:
        _make_writable(self._folder / "wandb")
        if self._reaches():
            try:
                return self._init(run, run.id, "online")
            except Exception as error:
                self._go_offline(first_line(error))
                # W&B still holds the id of the run that could not begin
                return self._init(run, f"{run.id}-offline", "offline")
        return self._init(run, run.id, "offline")

    def _init(self, run: Run, name: str, mode: Any) -> _Open:
        import wandb

        from tl_experiments.tracking.wandb_tables import define_axes

        entered = wandb.init(
            project=self._project,
            entity=self._entity,
            group=short(self._folder.name, 128),
            job_type=short(run.facts["arm"]["freeze_strategy"], _TAG_LIMIT),
            name=run_name(run),
            tags=sorted({short(run.facts["arm"][key], _TAG_LIMIT) for key in ARM} - {""}),
            id=f"{self._folder.name[:60]}-{name}",
            config=config(run),
            dir=self._folder,
            mode=mode,
            reinit="create_new",
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                # Metadata hold the command line and the host's name, which may say too much
                x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
                x_save_requirements=False, disable_git=True,
                disable_code=True, console="off", silent=True, finish_timeout_raises=True,
            ),
        )  # fmt: skip
        define_axes(entered)
        # An online run that goes on says where it stands; an offline file is always whole
        there = _Open(run, entered, entered.starting_step - 1)
        if mode == "online":
            self._remember(there, None)
        return there

    def _reachable(self) -> bool:
        """Whether there are a key and a server that answers; says what is not as expected."""
        import requests
        import wandb

        url = wandb.setup().settings.base_url
        has_key = bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(url))
        if not has_key:
            if self._mode == "online":
                self._go_offline("no API key; wandb login, or WANDB_API_KEY, sets one")
            return False
        if self._mode == "auto" and os.environ.get("WANDB_MODE", "online") != "online":
            return False
        try:
            requests.head(url, timeout=_ANSWER_TIMEOUT_S, allow_redirects=False)
        except requests.RequestException as error:
            self._go_offline(f"{url} does not answer: {type(error).__name__}")
            return False
        return True

    def _go_offline(self, reason: str) -> None:
        self._online = False
        self._say(f"wandb: {redacted_text(reason)}; going on offline")


def _make_writable(folder: Path) -> None:
    """Make the folder, or raise; W&B itself would write to the system's temporary folder without a word."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
