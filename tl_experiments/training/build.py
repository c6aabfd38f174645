"""The parts of a run, put together from its config."""

from __future__ import annotations

from dataclasses import dataclass

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.timm_backbone import TimmBackbone, build_backbone
from tl_experiments.backbones.weights import WeightsReport
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.transforms import Geometry
from tl_experiments.heads import build_head
from tl_experiments.objectives import build_objective
from tl_experiments.seeds import derive
from tl_experiments.strategies.plans import check_plan
from tl_experiments.training.model import TransferModel
from tl_experiments.training.phases import PhaseSteps, phase_steps
from tl_experiments.types import Objective


@dataclass(frozen=True)
class Parts:
    """What ``run`` works with.

    Args:
        data: Batches of each split.
        model: Backbone, new head, layout.
        weights: Where the backbone's weights came from.
        objective: What is minimised.
        phases: The plan, laid over the run's optimizer steps.
        lr: Base learning rate.
        notes: What a reader of the results should know about how the parts fit.
    """

    data: TransferDataModule
    model: TransferModel
    weights: WeightsReport
    objective: Objective
    phases: tuple[PhaseSteps, ...]
    lr: float
    notes: tuple[str, ...]


def build(cfg: TrainConfig) -> Parts:
    """Build data, model and plan.

    Raises:
        UserError: Whatever is wrong with the data, the weights or the plan.
    """
    seed = derive(cfg.seed, "backbone")
    backbone = build_backbone(cfg.backbone, seed, cfg.dataset.channels, tokens=cfg.head.reads_tokens)
    spec = backbone.input_spec
    data = TransferDataModule(
        cfg.dataset,
        cfg.augmentation,
        Geometry(spec.image_size, spec.interpolation, spec.crop_fraction),
        seed=cfg.seed,
        batch_size=cfg.trainer.batch_size,
        eval_batch_size=cfg.trainer.eval_batch_size,
        num_workers=cfg.trainer.num_workers,
    )
    head = build_head(cfg.head, backbone.feature_dim, len(data.spec.classes), derive(cfg.seed, "head"))
    layout = layout_of(backbone, head)
    plan = cfg.freeze_strategy.plan(layout)
    check_plan(plan, layout)
    phases = phase_steps(plan, data.steps_per_epoch, cfg.trainer.max_epochs)
    model = TransferModel(backbone, head, layout)
    return Parts(data, model, backbone.report, build_objective(cfg.objective), phases, cfg.base_lr(), _notes(backbone))


def _notes(backbone: TimmBackbone) -> tuple[str, ...]:
    notes = []
    ours, theirs = backbone.input_spec, backbone.trained_on
    if theirs.image_size not in (None, ours.image_size):
        notes.append(
            f"The weights were trained on images of {theirs.image_size} px and this run uses {ours.image_size} px: "
            f"backbone.preprocessing.image_size={theirs.image_size} would match."
        )
    if theirs.channels not in (None, ours.channels):
        notes.append(f"The weights were trained on {theirs.channels} channels and this run uses {ours.channels}.")
    if backbone.n_tokens == 1:
        notes.append(
            f"The backbone gives a single token at {ours.image_size} px, so that attention_pool has nothing to weigh: "
            "a larger backbone.preprocessing.image_size may give more."
        )
    return tuple(notes)
