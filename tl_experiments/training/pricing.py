"""What a step costs, measured on random weights and images in about a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.config.heads import Linear
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.sources import open_source
from tl_experiments.errors import DataError
from tl_experiments.features.split import split
from tl_experiments.heads import build_head
from tl_experiments.training.environment import choose_accelerator, choose_precision
from tl_experiments.training.model import TransferModel
from tl_experiments.training.storage import store_of
from tl_experiments.types import Phase

_BUDGET_S = 1.0
_IMAGES = 16  # a batch; per image, larger ones cost about the same
_PHASES = 3  # of a long plan: its first, middle and last
_DECODED = 16


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes, of one image each.

    Args:
        train_s: Of a training step: of the tail on kept activations, where a phase freezes a prefix and may keep them,
            else of the whole model; the mean of the phases.
        encode_s: Of a forward pass of the deepest prefix that a phase freezes, 0 where none does.
        row_bytes: Of what crosses that cut.
        image_size: Side of the images, in pixels.
    """

    train_s: float
    encode_s: float
    row_bytes: int
    image_size: int


def measure(cfg: TrainConfig, keeps_activations: bool) -> Measured:
    """Measure a few steps of each kind of phase; nothing is read or written.

    Args:
        cfg: A run's.
        keeps_activations: Whether frozen parts are computed once rather than in each step.

    Raises:
        UserError: The config does not fit the backbone.
    """
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    model = _model(cfg).to(device)
    plan = cfg.freeze_strategy.plan(model.layout)
    phases = [plan[round(place)] for place in _spread(len(plan))]
    size, channels = model.backbone.input_spec.image_size, cfg.dataset.channels
    images = torch.randint(0, 256, (min(_IMAGES, cfg.trainer.batch_size), channels, size, size), dtype=torch.uint8)
    steps = _Steps(model, images.to(device), precision, _BUDGET_S / len(phases))
    measured = [steps.measure(phase, keeps_activations) for phase in phases]
    encode_s, row_bytes = max((encode_s, row_bytes) for _, encode_s, row_bytes in measured)
    return Measured(sum(train_s for train_s, _, _ in measured) / len(measured), encode_s, row_bytes, size)


def measure_decoding(cfg: TrainConfig) -> float | None:
    """Seconds to read and decode an image of the run's dataset; None where the first ones cannot be."""
    source = open_source(cfg.dataset, store_of(cfg).digests)
    indices = range(0, len(source.items), math.ceil(len(source.items) / _DECODED))
    started = time.perf_counter()
    try:
        for index in indices:
            source.load(index)
    except DataError:
        return None
    return (time.perf_counter() - started) / len(indices)


class _Steps:
    def __init__(self, model: TransferModel, images: torch.Tensor, precision: str, budget_s: float) -> None:
        self._model, self._images, self._precision, self._budget_s = model, images, precision, budget_s
        self._labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def measure(self, phase: Phase, keeps_activations: bool) -> tuple[float, float, int]:
        """Seconds of a training step and of encoding, and bytes kept; per image."""
        self._model.train()
        self._model.begin(phase)
        cut = split(self._model, phase) if keeps_activations else "not wanted"  # type: ignore[arg-type,unused-ignore]
        if isinstance(cut, str):
            return self._seconds(lambda: self._train(self._model, self._images)), 0.0, 0
        with self._autocast():
            kept = cut.prefix(self._images)
        row_bytes = sum(one.nbytes for one in kept) // len(self._images)
        encode_s = self._seconds(lambda: cut.prefix(self._images))
        return self._seconds(lambda: self._train(cut.tail, *kept)), encode_s, row_bytes

    def _train(self, part: torch.nn.Module, *inputs: torch.Tensor) -> None:
        loss = functional.cross_entropy(part(*inputs).float(), self._labels)
        if loss.requires_grad:
            loss.backward()

    def _seconds(self, call: Callable[[], object]) -> float:
        """Per image: the least of some calls, after one that warms up."""
        times: list[float] = []
        until = time.perf_counter() + self._budget_s / 2
        while len(times) < 2 or time.perf_counter() < until:
            started = time.perf_counter()
            with self._autocast():
                call()
            if self._images.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times[1:]) / len(self._images)

    def _autocast(self) -> AbstractContextManager[None]:
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self._precision)
        return torch.autocast(self._images.device.type, dtype=half, enabled=half is not None)


def _model(cfg: TrainConfig) -> TransferModel:
    backbone = build_backbone(
        replace(cfg.backbone, weights="random"), 0, cfg.dataset.channels, tokens=cfg.head.reads_tokens
    )
    head_config = Linear() if cfg.head.is_solved else cfg.head
    head = build_head(head_config, backbone.feature_dim, 10, 0)
    return TransferModel(backbone, head, layout_of(backbone, head), cfg.trainer.memory_format)


def _spread(phases: int) -> list[float]:
    shown = min(_PHASES, phases)
    return [number * (phases - 1) / max(1, shown - 1) for number in range(shown)]
