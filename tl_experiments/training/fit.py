"""The phases of a plan, one Lightning fit each."""

from __future__ import annotations

import hashlib
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pytorch_lightning as pl

from tl_experiments.config.schema import TrainConfig
from tl_experiments.config.trainers import Fsdp
from tl_experiments.interrupt import Interrupted
from tl_experiments.training.build import Parts
from tl_experiments.training.caching import Cached, cached_phase, describe, hold_bytes
from tl_experiments.training.environment import device_of
from tl_experiments.training.groups import Told, unwatched
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id
from tl_experiments.training.module import TransferModule
from tl_experiments.training.parallel import placement, share_of
from tl_experiments.training.phases import PhaseSteps
from tl_experiments.training.profiling import StepProfiler
from tl_experiments.training.progress import progress_callbacks
from tl_experiments.training.ranks import ALONE, Ranks
from tl_experiments.training.resume import ResumePoint, WritingTimer, read_resume_point
from tl_experiments.training.sharding import shard, shares, undivided, whole

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Fitted:
    """What a run's phases leave.

    Args:
        trainer: Of the last phase.
        module: Of the last phase.
        cached: The phases that trained on kept activations, by number.
    """

    trainer: pl.Trainer
    module: TransferModule
    cached: dict[int, Cached]

    def release(self) -> None:
        """Let go of model and optimizer.

        Lightning's objects refer to each other and would keep both until Python looks for such circles.
        """
        _release(self.trainer, self.module)


def _release(trainer: pl.Trainer, module: TransferModule) -> None:
    trainer.strategy.optimizers = []
    trainer.strategy.model = None
    module.__dict__.clear()


def fit(
    cfg: TrainConfig,
    parts: Parts,
    history: History,
    accelerator: str,
    precision: str,
    progress: Told = unwatched,
    ranks: Ranks = ALONE,
) -> Fitted:
    """One fit a phase, from the newest resume point in the run's folder; ``history`` then holds the chosen weights.

    The start of the last phase is validated too: it may be the best there is.
    """
    _quieten_lightning()
    saver = _Saver(cfg, parts, history, ranks)
    point = saver.restore()
    done = point.step if point else 0
    accumulation = point.accumulation if point else cfg.trainer.accumulation
    unvalidated = point is not None and len(point.losses) > 0
    found: dict[int, Cached] = {}
    trainer: pl.Trainer | None = None
    module: TransferModule | None = None
    device = device_of(accelerator)
    if isinstance(cfg.trainer, Fsdp):
        shard(parts.model, device)
        history.best_state = shares(history.best_state, parts.model)
    if accelerator == "gpu":
        parts.data.serve(device, hold_bytes(cfg, device))
    parts.data.divide(share_of(cfg.trainer, parts, ranks))
    ranks.check_equal(undivided(parts.model), "before the first phase")
    for phase in parts.phases:
        if not phase.last and (phase.end_step < done or (phase.end_step == done and not unvalidated)):
            continue
        inside = point if point is not None and phase.first_step < point.step else None
        parts.model.to(device)  # Lightning takes it to the CPU after each fit
        parts.model.begin(phase.phase)
        for earlier in found.values():
            earlier.data.close()
        cached = _agreed(ranks, module, partial(cached_phase, cfg, parts, phase, accelerator, precision))
        reasons = [one for one in ranks.gather(cached if isinstance(cached, str) else "") if one]
        if reasons:  # what one process has no room for is computed anew by all
            cached = reasons[0]
        if line := describe(cached):
            logger.info("phase %d   %s", phase.number, line)
        if isinstance(cached, Cached):
            found[phase.number] = cached
            for note in cached.notes:
                logger.info("phase %d   %s", phase.number, note)
            _agreed(ranks, module, partial(cached.data.ensure, max(done, phase.first_step), phase.end_step))
        if trainer is not None and module is not None:
            _release(trainer, module)
        module = TransferModule(
            cfg, parts, phase, history, cached=found.get(phase.number),
            point=inside, accumulation=accumulation, save=saver.save, ranks=ranks,
        )  # fmt: skip
        callbacks = progress_callbacks(phase, parts.phases[-1].end_step, progress) if ranks.first else []
        if ranks.first and cfg.debug.profile and phase.number == 0:
            callbacks.append(StepProfiler(history.folder / "profile"))
        trainer = _trainer(cfg, len(module.chunks), history, accelerator, precision, callbacks)
        if inside is not None:
            trainer.precision_plugin.load_state_dict(inside.precision)
        with _interrupts_pass():
            at_an_end = unvalidated and inside is not None and phase.ends_at(inside.step)
            if at_an_end or (phase.last and inside is None):
                trainer.validate(module, verbose=False)
            if module.chunks and not module.out_of_patience():
                trainer.fit(module)
        accumulation = module.accumulation
    assert trainer is not None  # the last phase is never left out
    assert module is not None
    return Fitted(trainer, module, found)


def _trainer(
    cfg: TrainConfig,
    chunks: int,
    history: History,
    accelerator: str,
    precision: str,
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    return pl.Trainer(
        **placement(cfg.trainer, accelerator),
        precision=precision,  # type: ignore[arg-type]
        max_epochs=chunks,  # a chunk is one of Lightning's epochs
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=cfg.trainer.gradient_clip_norm,
        num_sanity_val_steps=0,
        inference_mode=False,  # images decoded during a validation are trained on later
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # Lightning's own; ours is a callback
        callbacks=callbacks,
        default_root_dir=history.folder,
    )


class _Saver:
    """Writes and reads the resume points of one run."""

    def __init__(self, cfg: TrainConfig, parts: Parts, history: History, ranks: Ranks) -> None:
        self._parts, self._history, self._ranks = parts, history, ranks
        self._timer = WritingTimer(cfg.trainer.resume_interval_s)
        self._run = {
            "way": f"feature_cache={cfg.feature_cache.name}",
            "job": job_id(cfg),
            "data": parts.data.spec.fingerprint,
            "weights": parts.weights.sha256 or parts.weights.source,
            **{f"phase {phase.number}": _digest(phase) for phase in parts.phases},
        }

    def restore(self) -> ResumePoint | None:
        """The newest point, after model and history have been put there."""
        # Sent to the others, whose view of a shared disk may lag behind
        point = self._ranks.done_by_first(lambda: read_resume_point(self._history.folder, self._run))
        if point is not None:
            self._parts.model.load_state_dict(point.model, strict=False)
            self._history.load_state(point.history)
            self._history.started -= point.elapsed_s
            logger.info("resuming  after step %d of %d", point.step, self._parts.phases[-1].end_step)
        return point

    def save(self, module: TransferModule, at_once: bool) -> None:
        """Write a point if it is time, or in any case."""
        if at_once or self._ranks.from_first(self._timer.is_due()):
            with self._timer:
                self._write(module)

    def _write(self, module: TransferModule) -> None:
        state = module.model.state_dict()
        begun = [phase for phase in self._parts.phases if phase.first_step < module.step]
        changed = {name for phase in begun for name in phase.changeable(module.model)}
        losses = module.losses.of_all()
        first = self._ranks.first
        model = whole({name: state[name] for name in state if name in changed}, first)
        optimizer, history = whole(module.optimizer_state(), first), whole(self._history.state(), first)
        point = ResumePoint(
            run=self._run,
            step=module.step,
            model=model,
            optimizer=optimizer,
            precision=module.trainer.precision_plugin.state_dict(),
            ema=module.ema.average if module.ema else {},
            history=history,
            losses=losses,
            accumulation=module.accumulation,
            elapsed_s=time.perf_counter() - self._history.started,
        )
        self._ranks.done_by_first(lambda: point.write(self._history.folder))


def _digest(phase: PhaseSteps) -> str:
    content = hashlib.sha256(repr(sorted(phase.phase.lr_multiplier.items())).encode()).hexdigest()[:8]
    steps, n = f"{phase.first_step} to {phase.end_step}", len(phase.phase.lr_multiplier)
    return f"steps {steps}, {n} tensors, norm statistics {phase.phase.norm_stats}, rates {content}"


def _agreed(ranks: Ranks, module: TransferModule | None, work: Callable[[], T]) -> T:
    """The result of work between two phases; where a signal ended any process's, all end.

    Another process takes over what the one that was told to end would have made for both.
    """
    with _ending(module):
        try:
            result, signum = work(), 0
        except Interrupted as error:
            if ranks.world_size == 1:
                raise
            signum = error.signum
        ranks.wait()
        (signum,) = ranks.largest(signum)
        if signum:
            raise Interrupted(signum)
        return result


@contextmanager
def _ending(module: TransferModule | None) -> Iterator[None]:
    """For work between two phases: where a signal ends it, a resume point is written; the phase before is done."""
    try:
        yield
    except Interrupted as error:
        if module is None:
            raise
        module.end(error.signum)


@contextmanager
def _interrupts_pass() -> Iterator[None]:
    """Lightning answers Ctrl-C with ``sys.exit(1)`` and ignores it from then on; here it stays a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _quieten_lightning() -> None:
    """Its advice is for people who write the Trainer call; here we do."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
