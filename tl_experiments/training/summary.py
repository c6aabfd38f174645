"""What a run is about to do, said before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from tl_experiments.backbones.report import WeightsReport
from tl_experiments.config.heads import SolvedHead
from tl_experiments.config.schema import TrainConfig
from tl_experiments.strategies.plans import frozen_prefix
from tl_experiments.training.build import Parts
from tl_experiments.training.phases import PhaseSteps
from tl_experiments.types import Block

_COLUMNS = 4  # phases that a terminal holds side by side


def summary_lines(cfg: TrainConfig, parts: Parts, device: str, precision: str) -> Iterator[str]:
    """Data, model, plan and device, a line each."""
    spec = parts.data.spec
    sizes = ", ".join(f"{split} {n}" for split, n in spec.sizes.items())
    yield f"data      {cfg.dataset.name}: {len(spec.classes)} classes, {sizes} images of {_shape(parts)}"
    for note in (*spec.notes, *parts.notes):
        yield f"          note: {note}"
    total = sum(block.size for block in parts.model.layout.all_blocks)
    yield f"backbone  {cfg.backbone.name}: {total:,} parameters with the head"
    yield f"weights   {weights_line(parts.weights)}"
    if isinstance(cfg.head, SolvedHead):
        name, settings = cfg.head.path
        yield f"head      {cfg.head.name}: solved on the features of the frozen backbone, {name} out of {len(settings)}"
    for phase in () if cfg.head.is_solved else parts.phases:
        trained = sum(trained_parameters(parts, phase).values())
        rates = phase.learning_rates(parts.lr)
        span = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
        yield (
            f"phase {phase.number}   {cfg.freeze_strategy.name}: trains {trained:,} ({trained / total:.1%}), "
            f"{_prefix(parts, phase)}, for {phase.steps} steps at {cfg.optimizer.rule} lr {span}"
        )
    devices = cfg.trainer.world_size
    yield f"device    {f'{devices} x ' if devices > 1 else ''}{device}, {precision}"
    if line := batch_line(cfg):
        yield f"batch     {line}"


def batch_line(cfg: TrainConfig) -> str | None:
    """The batch of a step and the rule of its learning rate, where several devices share them; None elsewhere."""
    trainer = cfg.trainer
    if trainer.name == "default":
        return None
    devices, scale, whole = trainer.world_size, trainer.scale, trainer.effective_batch_size
    size = f"{scale} x {trainer.batch_size} = {whole}" if trainer.batch_scaling == "linear" else f"{whole}"
    rate = f"{cfg.base_lr():.3g} as given"
    if cfg.optimizer.lr is None:
        rate = f"{scale} x {cfg.base_lr() / scale:.3g} (linear scaling)" if scale > 1 else f"{cfg.base_lr():.3g}"
    return f"{size} images a step over {devices} device{'s' if devices > 1 else ''}; learning rate {rate}"


def weights_line(weights: WeightsReport) -> str:
    """Source and account of the weights, in one line."""
    if weights.source == "random":
        return "random"
    counts = {
        "of the source's classifier dropped": weights.classifier_dropped,
        "beside the backbone left out": weights.unexpected.count,
        "resized": len(weights.resized),
        "adapted to the channels": len(weights.adapted),
    }
    more = "".join(f", {count} {what}" for what, count in counts.items() if count)
    runs = f", after {len(weights.lineage)} own run{'s' if len(weights.lineage) > 1 else ''}" if weights.lineage else ""
    return f"{weights.source}: {weights.matched} of {weights.total} tensors matched{more}{runs}"


def _prefix(parts: Parts, phase: PhaseSteps) -> str:
    layout = parts.model.layout
    frozen, n = frozen_prefix(phase.phase, layout), len(layout.blocks)
    return f"the first {frozen} of {n} blocks frozen" if frozen else f"reaches down to the first of {n} blocks"


def trained_parameters(parts: Parts, phase: PhaseSteps) -> dict[str, int]:
    """Parameter name -> elements, of what the phase trains."""
    layout = parts.model.layout
    sizes = {name: size for block in layout.all_blocks for name, size in block.parameters.items()}
    return {name: sizes[name] for name in phase.phase.lr_multiplier}


def layout_table(parts: Parts) -> str:
    """Block, parameters and, per phase, the learning rate: for ``print_layout=true``."""
    if len(parts.phases) > _COLUMNS:
        header = ["block", "parameters", "trains from", "at first", "in the last phase"]
        rows = [header, *([block.name, f"{block.size:,}", *_span(block, parts)] for block in _blocks(parts))]
    else:
        phases = (f"phase {phase.number} (from step {phase.first_step})" for phase in parts.phases)
        rows = [["block", "parameters", *phases]]
        for block in _blocks(parts):
            rates = [_rate(block, phase, parts.lr) for phase in parts.phases]
            rows.append([block.name, f"{block.size:,}", *rates])
    header = rows[0]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    notes = [f"note: {note}" for note in parts.model.layout.notes]
    table = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([*table, *notes])


def _blocks(parts: Parts) -> tuple[Block, ...]:
    return parts.model.layout.all_blocks


def _span(block: Block, parts: Parts) -> list[str]:
    """Phase and step from which the block trains, its rate there, and its rate at the end."""
    training = [phase for phase in parts.phases if phase.phase.lr_multiplier.keys() & block.parameters.keys()]
    if not training:
        return ["never", "frozen", "frozen"]
    first = training[0]
    start = f"phase {first.number} (step {first.first_step})"
    return [start, _rate(block, first, parts.lr), _rate(block, parts.phases[-1], parts.lr)]


def _rate(block: Block, phase: PhaseSteps, lr: float) -> str:
    rates = sorted(
        {lr * phase.phase.lr_multiplier[name] for name in block.parameters if name in phase.phase.lr_multiplier}
    )
    return "frozen" if not rates else " to ".join(f"{rate:.3g}" for rate in {rates[0]: None, rates[-1]: None})


def _shape(parts: Parts) -> str:
    size, channels = parts.model.backbone.input_spec.image_size, parts.data.spec.channels
    return f"{size} px" if channels == 3 else f"{size} px, {channels} channel{'s' if channels > 1 else ''}"
