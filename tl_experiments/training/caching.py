"""Whether a phase trains on kept activations, and on which."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from tl_experiments.config.running import FeatureCacheAuto
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.device import Room, to_device
from tl_experiments.features.activations import Activations
from tl_experiments.features.batches import CachedData, count_items
from tl_experiments.features.encoding import compiled, compiling_pays, encoding_batch
from tl_experiments.features.keys import ActivationFacts, activation_key
from tl_experiments.features.memory_table import MemoryTable
from tl_experiments.features.rows import Column, columns_of, rounding, row_bytes
from tl_experiments.features.split import Split, split
from tl_experiments.strategies.plans import frozen_prefix
from tl_experiments.training.build import Parts
from tl_experiments.training.environment import autocast, device_of
from tl_experiments.training.groups import LEAST_VISITS, why_live
from tl_experiments.training.phases import PhaseSteps
from tl_experiments.training.storage import store_of
from tl_experiments.types import Batch

# Bytes that are read and floating-point operations that are done in the same time, as a rule of thumb: 1 GB/s from a
# disk to 50 GFLOP/s of a core; 10 GB/s from memory to 20 TFLOP/s of a GPU. No measurement, so that the same run takes
# the same way everywhere.
_FLOPS_A_BYTE = {"cpu": 50, "gpu": 2000}


@dataclass(frozen=True)
class Cached:
    """A phase that trains on kept activations.

    Args:
        split: The model, cut.
        data: The batches of its tail.
        row_bytes: Kept of one image.
        notes: What a reader of the results should know about it, in whole sentences.
    """

    split: Split
    data: CachedData
    row_bytes: int
    notes: tuple[str, ...] = ()

    def logits(self, batch: Batch) -> Tensor:
        """Those of a batch of activations."""
        return cast(Tensor, self.split.tail(*batch["activations"]))


def cached_phase(cfg: TrainConfig, parts: Parts, phase: PhaseSteps, accelerator: str, precision: str) -> Cached | str:
    """What the phase trains on if it need not compute its frozen part anew, or in a few words why it must.

    The model stands on its device and has begun the phase; its frozen part is as the phase will use it.
    """
    if reason := why_live(cfg):
        return reason
    if frozen_prefix(phase.phase, parts.model.layout) == 0:
        return "nothing is frozen"
    if _visits(parts, phase) < LEAST_VISITS:
        return "the phase sees most images once"
    cut = split(parts.model, phase.phase)
    if isinstance(cut, str):
        return cut
    return open_activations(cfg, parts, cut, accelerator, precision, count_items([parts.data]))


def open_activations(
    cfg: TrainConfig, parts: Parts, cut: Split, accelerator: str, precision: str, items: int
) -> Cached | str:
    """The tables of a cut, each for so many items, or in a few words why they are no use."""
    assert isinstance(cfg.feature_cache, FeatureCacheAuto)
    data, device = parts.data, device_of(accelerator)
    dtype = getattr(torch, cfg.feature_cache.dtype) if cfg.feature_cache.dtype else None
    sample = torch.zeros(2, data.spec.channels, *2 * [data.image_size], dtype=torch.uint8, device=device)
    with torch.no_grad(), autocast(accelerator, precision):
        columns = columns_of(cut.prefix(sample), dtype)
    size = row_bytes(columns)
    if cut.flops < _FLOPS_A_BYTE[accelerator] * size:
        return f"its frozen part, up to {cut.cut}, is computed faster than {size:,} bytes an image are read"
    notes: tuple[str, ...] = ()
    if cfg.feature_cache.dtype:
        share = _rounding(parts, cut, columns, accelerator, precision)
        if not math.isfinite(share):
            return f"some of its activations are no numbers of {cfg.feature_cache.dtype}"
        kept = f"Activations kept as {cfg.feature_cache.dtype}"
        notes = (f"{kept}: they differ by up to {share:.1e} of their largest value.",)
    views: Sequence[int | None] = range(cfg.feature_cache.views or 0) if _augmented(cfg) else [None]
    store, compiles = store_of(cfg), compiling_pays(device, items)
    prefix = compiled(cut.prefix) if compiles else cut.prefix
    room = Room(hold_bytes(cfg, device))  # one for all views
    memory = room if device.type == "cpu" else Room(room.left)
    found: dict[int | None, Activations] = {}
    for view in dict.fromkeys([None, *views]):
        facts = ActivationFacts(
            backbone=cfg.backbone.name,
            kwargs=cfg.backbone.kwargs,
            transform=data.describe(view),
            precision=f"{precision} {cfg.trainer.memory_format} {columns}",
            data=data.source_fingerprint,
            device=f"{device.type} compiled" if compiles else device.type,
        )
        about = {
            "kind": "activations",
            "dataset": cfg.dataset.name,
            "backbone": cfg.backbone.name,
            "cut": cut.cut,
            "view": "" if view is None else str(view),
        }
        table = store.open(activation_key(cut, facts), size, items, about)
        if table is None and not memory.take(items * size):
            return f"{items * size:,} bytes of activations fit neither into {store.folder} nor into memory"
        found[view] = Activations(
            MemoryTable(size) if table is None else table,
            columns,
            prefix,
            partial(data.images, view=view),
            partial(autocast, accelerator, precision),
            device,
            room,
        )
    return Cached(cut, CachedData(data, found[None], [found[view] for view in views]), size, notes)


def _rounding(parts: Parts, cut: Split, columns: Sequence[Column], accelerator: str, precision: str) -> float:
    """What keeping costs in precision, of the first training images."""
    images = parts.data.images(parts.data.items("train")[: encoding_batch(device_of(accelerator))])
    with torch.no_grad(), autocast(accelerator, precision):
        return rounding(cut.prefix(to_device(images, device_of(accelerator))), columns)


def _augmented(cfg: TrainConfig) -> bool:
    return cfg.augmentation.name != "none"


def _visits(parts: Parts, phase: PhaseSteps) -> float:
    """Times that the phase looks at an image, on the mean over those that it looks at at all."""
    sizes, epochs = parts.data.spec.sizes, phase.steps / parts.data.steps_per_epoch
    looks = epochs * sizes["train"] + len(phase.chunks) * sizes["val"]
    return looks / (min(1.0, epochs) * sizes["train"] + sizes["val"])


def hold_bytes(cfg: TrainConfig, device: torch.device) -> int:
    """Of the device's memory that activations, or images, may be held in."""
    given = cfg.feature_cache.hold_max_bytes if isinstance(cfg.feature_cache, FeatureCacheAuto) else None
    if given is not None:
        return given
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] // 2 // (cfg.executor.jobs_per_device or 1)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8 // cfg.trainer.devices


def describe(cached: Cached | str) -> str | None:
    """What the log says about it; None where there is nothing that a reader did not know."""
    if isinstance(cached, Cached):
        return f"trains on activations kept {cached.split.cut}, {cached.row_bytes:,} bytes an image"
    return None if cached in ("nothing is frozen", "feature_cache=off") else f"computes its frozen part anew: {cached}"
