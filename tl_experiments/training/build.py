"""The parts of a run, put together from its config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.report import WeightsReport
from tl_experiments.backbones.timm_backbone import InputSpec, TimmBackbone, build_backbone, input_spec
from tl_experiments.config.heads import SolvedHead
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.broken import refuse_bad
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.decoded import DecodedImages
from tl_experiments.data.items import Source
from tl_experiments.data.sources import open_source
from tl_experiments.data.transforms import Geometry
from tl_experiments.errors import ConfigError
from tl_experiments.heads import build_head
from tl_experiments.objectives import build_objective
from tl_experiments.seeds import derive
from tl_experiments.strategies.plans import check_plan
from tl_experiments.training.groups import ALONE, SharedWork
from tl_experiments.training.model import TransferModel
from tl_experiments.training.optimization import check_optimizer
from tl_experiments.training.phases import PhaseSteps, phase_steps
from tl_experiments.training.storage import store_of
from tl_experiments.types import ModelLayout, Objective, Phase


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


def build(cfg: TrainConfig, shared: SharedWork = ALONE) -> Parts:
    """Build data, model and plan.

    Args:
        cfg: Of the run.
        shared: What to do for others on the way.

    Raises:
        UserError: Whatever is wrong with the data, the weights or the plan.
    """
    backbone = open_backbone(cfg)
    return assemble(cfg, open_data(cfg, open_images(cfg, backbone, shared)), backbone)


def open_backbone(cfg: TrainConfig) -> TimmBackbone:
    """The backbone with its weights.

    Raises:
        UserError: Whatever is wrong with its options or weights.
    """
    seed = derive(cfg.seed, "backbone")
    return build_backbone(cfg.backbone, seed, cfg.dataset.channels, tokens=cfg.head.reads_tokens)


@dataclass(frozen=True)
class OpenImages:
    """A dataset as a backbone sees it, however it is divided.

    Args:
        source: Listed.
        geometry: What the backbone sees.
        decoded: Images that runs share; None where nobody else would want them.
    """

    source: Source
    geometry: Geometry
    decoded: DecodedImages | None


def open_images(cfg: TrainConfig, backbone: TimmBackbone, shared: SharedWork) -> OpenImages:
    """List the dataset, and find the images of it that are decoded already.

    Raises:
        DataError: The dataset cannot be used as it stands; every file has been decoded once by then, here or before.
    """
    store, channels = store_of(cfg), cfg.dataset.channels
    listed = open_listed(cfg, backbone.input_spec)
    if not shared.keep_decoded:
        return listed
    others = [_geometry(input_spec(other, channels)) for other in shared.backbones if other != cfg.backbone]
    decoded = DecodedImages(listed.source, [listed.geometry, *others], channels, store)
    return replace(listed, decoded=decoded)


def open_listed(cfg: TrainConfig, spec: InputSpec) -> OpenImages:
    """List the dataset for a backbone that wants ``spec``, without what others have decoded.

    Raises:
        DataError: As in ``open_images``.
    """
    source = open_source(cfg.dataset, digests=store_of(cfg).digests)
    refuse_bad(source, Path(cfg.output_dir).expanduser())
    return OpenImages(source, _geometry(spec), None)


def _geometry(spec: InputSpec) -> Geometry:
    return Geometry(spec.image_size, spec.interpolation, spec.crop_fraction)


def open_data(cfg: TrainConfig, images: OpenImages) -> TransferDataModule:
    """The dataset, divided as the run wants it.

    Raises:
        DataError: It cannot be divided so.
    """
    each = cfg.dataset.preload_max_bytes // cfg.trainer.devices  # processes that share a machine's memory
    return TransferDataModule(
        replace(cfg.dataset, preload_max_bytes=each),
        cfg.augmentation,
        images.geometry,
        source=images.source,
        decoded=images.decoded,
        seed=cfg.seed,
        batch_size=cfg.trainer.effective_batch_size,
        eval_batch_size=cfg.trainer.eval_batch_size,
        num_workers=cfg.trainer.num_workers,
        images_per_split=cfg.debug.images_per_split,
        evaluate_on_train=cfg.debug.evaluate_on_train,
    )


def assemble(
    cfg: TrainConfig, data: TransferDataModule, backbone: TimmBackbone, layout: ModelLayout | None = None
) -> Parts:
    """Head, plan and objective to a backbone and its data.

    Args:
        cfg: Of the run.
        data: Its dataset.
        backbone: On which the head stands.
        layout: Of the backbone with such a head, where it is known.

    Raises:
        ConfigError: The plan does not fit the backbone, or leaves no step for one of its phases.
    """
    head = build_head(cfg.head, backbone.feature_dim, len(data.spec.classes), derive(cfg.seed, "head"))
    layout = layout_of(backbone, head) if layout is None else layout
    if isinstance(cfg.head, SolvedHead):  # a setting of its path counts as a step
        plan: tuple[Phase, ...] = (Phase(0.0, dict.fromkeys(layout.head.parameters, 1.0), "frozen"),)
        phases = phase_steps(plan, 1, len(cfg.head.path[1]))
    else:
        plan = cfg.freeze_strategy.plan(layout)
        check_plan(plan, layout)
        phases = phase_steps(plan, data.steps_per_epoch, cfg.trainer.max_epochs)
    if len(phases) == 1 < len(plan):  # it would be another strategy under this one's name
        raise ConfigError(
            "trainer.max_epochs",
            f"{cfg.trainer.max_epochs}, which is {phases[0].steps} steps: too few for the {len(plan)} phases of "
            f"{cfg.freeze_strategy.name}",
            "give more epochs or a smaller trainer.batch_size",
        )
    check_optimizer(cfg.optimizer)
    model = TransferModel(backbone, head, layout, cfg.trainer.memory_format)
    if cfg.trainer.gradient_checkpointing:
        backbone.checkpoint_gradients()
    objective = build_objective(cfg.objective, data.labels(data.items("train")), len(data.spec.classes))
    lr = 0.0 if cfg.head.is_solved else cfg.base_lr()
    notes = (*_notes(cfg, backbone, layout), *_phase_notes(len(plan), len(phases)))
    return Parts(data, model, backbone.report, objective, phases, lr, notes)


def _notes(cfg: TrainConfig, backbone: TimmBackbone, layout: ModelLayout) -> tuple[str, ...]:
    notes = [*layout.notes, *backbone.report.adaptations()]
    if cfg.debug.no_result:
        how = "options of debug" if cfg.debug.name in ("none", "traceback") else cfg.debug.name
        notes.insert(0, f"A debug run ({how}): its numbers are no result.")
    if cfg.objective.class_weights == "balanced" and cfg.dataset.sampling == "balanced":
        notes.append(
            "Classes are balanced twice, by sampling and by weights: small ones count for more than large ones."
        )
    theirs, ours = backbone.report.image_size, backbone.input_spec.image_size
    if theirs not in (None, ours):
        notes.append(
            f"The weights were trained on images of {theirs} px and this run uses {ours} px: "
            f"backbone.preprocessing.image_size={theirs} would match."
        )
    if backbone.n_tokens == 1:
        notes.append(
            f"The backbone gives a single token at {ours} px, so that attention_pool has nothing to weigh: "
            "a larger backbone.preprocessing.image_size may give more."
        )
    return tuple(notes)


def _phase_notes(planned: int, kept: int) -> tuple[str, ...]:
    if kept == planned:
        return ()
    return (
        f"{planned - kept} of the {planned} phases got no optimizer step of their own and were left out: "
        "more trainer.max_epochs or a smaller trainer.batch_size gives them some.",
    )
