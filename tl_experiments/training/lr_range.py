"""The learning-rate range test: one short training whose rate rises from step to step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn

from tl_experiments.config.schema import LrConfig
from tl_experiments.records import LrCurve
from tl_experiments.seeds import derive
from tl_experiments.strategies.apply import param_groups
from tl_experiments.training.build import Parts, build
from tl_experiments.training.caching import hold_bytes
from tl_experiments.training.environment import autocast, choose_accelerator, choose_precision, device_of, environment
from tl_experiments.training.identity import arm
from tl_experiments.training.memory import split_batch
from tl_experiments.training.optimization import build_optimizer
from tl_experiments.training.phases import PhaseSteps

_BLOWN_UP = 4  # times the lowest loss, as in Smith's and fastai's tests


def range_test(cfg: LrConfig) -> LrCurve:
    """Train ``lr_range.steps`` steps at rates rising exponentially from ``min_lr`` to ``max_lr`` (Smith, 2017).

    It trains what one phase of the strategy trains, from the weights that the run starts with, each group at its
    multiple of the base rate. It ends early where the loss is no number or far above its lowest. One device does it;
    for a trainer of several it sees the whole batch of all.

    Raises:
        UserError: Whatever is wrong with data, weights or plan.
    """
    accelerator = choose_accelerator(cfg.trainer)
    precision = choose_precision(cfg.trainer, accelerator)
    parts = build(cfg)
    phase = parts.phases[-1 if cfg.lr_range.phase == "last" else 0]
    rates, losses = zip(*_losses(cfg, parts, phase, accelerator, precision), strict=True)
    return LrCurve(
        arm=arm(cfg),
        config=dataclasses.asdict(cfg),
        seed=cfg.seed,
        optimizer=cfg.optimizer.rule,
        rule=cfg.rule(),
        phase=phase.number,
        learning_rates=rates,
        losses=losses,
        environment=environment(accelerator, precision),
    )


def _losses(
    cfg: LrConfig, parts: Parts, phase: PhaseSteps, accelerator: str, precision: str
) -> Iterator[tuple[float, float]]:
    """Base rate and training loss of each step."""
    device = device_of(accelerator)
    model = parts.model.to(device)
    if accelerator == "gpu":
        parts.data.serve(device, hold_bytes(cfg, device))
    model.begin(phase.phase)
    model.train()
    optimizer = build_optimizer(cfg.optimizer, param_groups(model, phase.phase, 1.0, cfg.optimizer.weight_decay))
    multiples = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(derive(cfg.seed, "training", 0))
    steps, lowest, average = cfg.lr_range.steps, math.inf, 0.0
    for step, batch in enumerate(parts.data.train_batches(0, steps)):
        rate = cfg.lr_range.min_lr * (cfg.lr_range.max_lr / cfg.lr_range.min_lr) ** (step / (steps - 1))
        for group, multiple in zip(optimizer.param_groups, multiples, strict=True):
            group["lr"] = rate * multiple
        batch = {name: tensor.to(device) for name, tensor in batch.items()}  # type: ignore[attr-defined, assignment]
        optimizer.zero_grad()
        value, whole = 0.0, parts.objective.total_weight(batch)
        for part in split_batch(batch, cfg.trainer.world_size, smallest=2):  # each as large as a device's own
            with autocast(accelerator, precision):
                loss = parts.objective.loss(model.logits, part) * (parts.objective.total_weight(part) / whole)
            loss.backward()
            value += loss.item()
        if cfg.trainer.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.gradient_clip_norm)
        if not math.isfinite(value):
            return
        yield rate, value
        optimizer.step()
        average = value if step == 0 else 0.9 * average + 0.1 * value
        lowest = min(lowest, average)
        if average > _BLOWN_UP * lowest:
            return
