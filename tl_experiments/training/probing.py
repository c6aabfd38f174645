"""Heads on fixed features: the runs of a group, trained in one computation and without Lightning."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.errors import TrainingError, UserError
from tl_experiments.features.batches import count_items
from tl_experiments.features.split import split
from tl_experiments.heads.linear import LinearHead
from tl_experiments.records import RECORD_FILE, RunRecord, remove_stale_temporaries
from tl_experiments.training.account import Trained, make_record, write_start
from tl_experiments.training.build import assemble, open_backbone, open_data, open_images
from tl_experiments.training.caching import Cached, open_activations
from tl_experiments.training.checkpoint import write_checkpoint
from tl_experiments.training.disk import check_space
from tl_experiments.training.environment import choose_accelerator, choose_precision, device_name, device_of
from tl_experiments.training.groups import SharedWork, unjudged
from tl_experiments.training.history import History
from tl_experiments.training.identity import job_id
from tl_experiments.training.model import TransferModel
from tl_experiments.training.outputs import write_results
from tl_experiments.training.probe import Outcome, Probe, Progress
from tl_experiments.training.solving import solve
from tl_experiments.training.stacks import remove_stack_points, stacks, train_stack
from tl_experiments.training.summary import summary_lines
from tl_experiments.types import Block, Phase

logger = logging.getLogger(__name__)

_WRITERS = 8  # a file is synced to the disk in several times the time that writing it takes


def train_probes(
    jobs: Sequence[tuple[TrainConfig, Path]], shared: SharedWork, done: frozenset[int], progress: Progress
) -> Iterator[tuple[int, RunRecord | UserError]]:
    """Train runs with equal ``group_key``; yields each one's record, or what a user can mend, as it ends.

    Args:
        jobs: Configs and folders.
        shared: What to do for other tasks on the way.
        done: Positions that take part because the group fixes the others' last bits, and of which nothing is written.
        progress: ``progress(position, done, total)``, called at every validation.
    """
    group = _open(jobs, shared, done)
    yield from ((position, error) for position, error in group.errors.items() if position not in done)
    if not (wanted := [probe for probe in group.probes if probe.position not in done]):
        return
    lead = group.probes[0]
    check_space(lead.cfg, lead.parts, lead.history.folder, runs=len(wanted))
    for line in summary_lines(lead.cfg, lead.parts, device_name(group.accelerator), group.precision):
        logger.info(line)
    if len(group.probes) > 1:
        logger.info("together  %d heads on the same features; the lines above are of the first", len(group.probes))
    cached = _features(group)
    if isinstance(cached, str):
        yield from _alone(jobs, wanted, cached, shared, progress)
        return
    for note in cached.notes:
        logger.info("note      %s", note)
    with interrupt.postponed(), ThreadPoolExecutor(_WRITERS) as writers:
        work = _encode(cached, group.probes)
        list(writers.map(_begin, wanted))
        prepared = (time.perf_counter() - group.started) / len(jobs)
        for stack in stacks(group.probes):
            mine = [probe for probe in stack if probe in wanted]
            if not mine:
                continue
            begun = time.perf_counter()
            train = solve if stack[0].cfg.head.is_solved else train_stack
            ended = dict(zip((probe.position for probe in stack), train(stack, cached.data, progress), strict=True))
            earlier = group.started - stack[0].history.started  # what a resume point brought
            seconds = earlier + time.perf_counter() - begun
            write = partial(_finish, group=group, seconds=prepared + seconds / len(stack), notes=cached.notes)
            results = []
            for probe in mine:
                outcome = ended[probe.position]
                results.append(writers.submit(write, probe, outcome, work))
                work = {} if isinstance(outcome, Outcome) else work  # what all share is entered once
            wait(results)  # whatever happens to one, the others' files are written and told
            done_well = [(probe, one) for probe, one in zip(mine, results, strict=True) if one.exception() is None]
            for probe, one in done_well:
                yield probe.position, one.result()
            for one in results:
                one.result()
            remove_stack_points(stack)


@dataclass(frozen=True)
class _Group:
    """Runs that share a backbone, opened.

    Args:
        probes: Those that can be trained.
        errors: Position -> why a run cannot.
        accelerator: ``gpu`` or ``cpu``.
        precision: Lightning's name of it.
        started: ``time.perf_counter()``.
    """

    probes: list[Probe]
    errors: dict[int, UserError]
    accelerator: str
    precision: str
    started: float


def _open(jobs: Sequence[tuple[TrainConfig, Path]], shared: SharedWork, done: frozenset[int]) -> _Group:
    """Each run's parts; what is wrong with one costs only that one."""
    started = time.perf_counter()
    first = jobs[0][0]
    accelerator = choose_accelerator(first.trainer)
    group = _Group([], {}, accelerator, choose_precision(first.trainer, accelerator), started)
    backbone = open_backbone(first)
    images = open_images(first, backbone, shared)
    backbone.to(device_of(accelerator))
    datasets: dict[str, TransferDataModule] = {}
    for position, (cfg, folder) in enumerate(jobs):
        seed = cfg.dataset.labels_seed(cfg.seed)
        key = json.dumps([dataclasses.asdict(cfg.dataset), dataclasses.asdict(cfg.debug), seed], sort_keys=True)
        try:
            if key not in datasets:
                datasets[key] = open_data(cfg, images)
            data = datasets[key].ordered(cfg.seed, cfg.trainer.batch_size, cfg.trainer.eval_batch_size)
            same = [probe for probe in group.probes[:1] if probe.cfg.head == cfg.head]
            parts = assemble(cfg, data, backbone, same[0].parts.model.layout if same else None)
        except UserError as error:
            group.errors[position] = error
            continue
        steps_per_epoch = 1 if cfg.head.is_solved else data.steps_per_epoch
        history = History(folder, steps_per_epoch, started, quiet=len(jobs) > 1, writes=position not in done)
        group.probes.append(Probe(position, job_id(cfg), cfg, parts, history, key))
    return group


def _alone(
    jobs: Sequence[tuple[TrainConfig, Path]],
    wanted: Sequence[Probe],
    reason: str,
    shared: SharedWork,
    progress: Progress,
) -> Iterator[tuple[int, RunRecord | UserError]]:
    """Train one after the other with Lightning where features cannot be kept."""
    from tl_experiments.training.alone import run_alone

    logger.info("features  cannot be kept (%s): each run computes them in every step", reason)
    for probe in wanted:
        cfg, folder = jobs[probe.position]
        if cfg.head.is_solved:
            yield probe.position, TrainingError("feature_cache", reason, "head=linear trains without kept features")
            continue
        try:
            yield probe.position, run_alone(cfg, folder, shared, partial(progress, probe.position), unjudged)
        except UserError as error:
            yield probe.position, error


def _features(group: _Group) -> Cached | str:
    """Where the features of the frozen backbone are kept, or in a few words why they cannot be."""
    lead = group.probes[0]
    model, phase = lead.parts.model, lead.parts.phases[0].phase
    if not model.layout.head.parameters:  # the cut is before what trains
        model, phase = _with_a_linear_head(lead)
    model.begin(phase)
    model.eval()
    cut = split(model, phase)
    if isinstance(cut, str):
        return cut
    items = count_items([probe.parts.data for probe in group.probes])
    return open_activations(lead.cfg, lead.parts, cut, group.accelerator, group.precision, items)


def _with_a_linear_head(probe: Probe) -> tuple[TransferModel, Phase]:
    """The run's backbone below a head that could train."""
    backbone = probe.parts.model.backbone
    head = LinearHead(backbone.feature_dim, 2, dropout=0.0).to(probe.parts.model.mean.device)
    block = Block("head", {f"head.{name}": parameter.numel() for name, parameter in head.named_parameters()})
    layout = dataclasses.replace(probe.parts.model.layout, head=block)
    model = TransferModel(backbone, head, layout, probe.cfg.trainer.memory_format)
    return model, Phase(0.0, dict.fromkeys(block.parameters, 1.0), "frozen")


def _encode(cached: Cached, probes: Sequence[Probe]) -> dict[str, Any]:
    """Encode what is missing of all runs' images; returns what that took."""
    begun = time.perf_counter()
    cached.data.ensure_all([(probe.parts.data, probe.cfg.trainer.max_epochs) for probe in probes])
    seconds = time.perf_counter() - begun
    logger.info("features  %d images encoded in %.1f s, the rest was there", cached.data.encoded, seconds)
    decoded = cached.data.data.images_decoded
    return {"images_decoded": decoded, "images_encoded": cached.data.encoded, "encode_s": round(seconds, 3)}


def _begin(probe: Probe) -> None:
    (probe.history.folder / RECORD_FILE).unlink(missing_ok=True)  # a record beside other metrics would lie
    remove_stale_temporaries(probe.history.folder)
    write_start(probe.history.folder, probe.cfg, probe.identity, probe.parts.lr)


def _finish(
    probe: Probe,
    outcome: Outcome | UserError,
    work: Mapping[str, Any],
    *,
    group: _Group,
    seconds: float,
    notes: tuple[str, ...],
) -> RunRecord | UserError:
    """Write everything that a run leaves, the record last."""
    if isinstance(outcome, UserError):
        return outcome
    cfg, parts, history = probe.cfg, probe.parts, probe.history
    folder, identity = history.folder, probe.identity
    history.restore_best(parts.model)
    metrics = write_results(folder, parts.data, history, outcome.tests)
    write_checkpoint(folder, cfg, identity, parts, parts.model.state_dict())
    counts = {"images_decoded": 0, "images_encoded": 0, "cached_phases": [0], "together": len(group.probes), **work}
    trained = Trained(metrics, outcome.last_step, 1, counts, (*outcome.notes, *notes))
    record = make_record(cfg, identity, parts, history, trained, group.accelerator, group.precision, seconds)
    record.write(folder)
    return record
