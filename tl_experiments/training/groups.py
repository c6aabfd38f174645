"""Which runs can be trained in one computation, told from their configs alone. Without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from tl_experiments.backbones.locate import weights_digest
from tl_experiments.config.backbones import BackboneConfig
from tl_experiments.config.datasets import Dataset
from tl_experiments.config.heads import Linear
from tl_experiments.config.optimization import SGD, AdamW
from tl_experiments.config.schema import TrainConfig
from tl_experiments.strategies.plans import trains_head_only

# Of a dataset: which of its images are used for what. Features are kept by image, whoever uses it.
_SUBSET = frozenset(
    {
        *("label_fraction", "shots", "subset_seed", "split_seed", "val_fraction", "test_fraction", "folds", "fold"),
        *("sampling", "preload_max_bytes"),
    }
)


@dataclass(frozen=True)
class SharedWork:
    """What a run may do for others while it is at it.

    Args:
        backbones: Of all jobs of the sweep with the run's dataset: an image is decoded once for all of them.
        keep_decoded: Whether somebody will want the decoded images again.
    """

    backbones: tuple[BackboneConfig, ...] = ()
    keep_decoded: bool = True


ALONE = SharedWork()
LEAST_VISITS = 1.5  # of each image in a phase, below which its frozen part is computed anew: encoding costs one


Told = Callable[[int, int], None]  # optimizer steps done, of how many


# Validations so far and the last one's accuracy -> why the run is to end now; None where it goes on
Judge = Callable[[int, float], str | None]


def unjudged(_validations: int, _accuracy: float) -> None:
    """Every run goes on to its end."""


def unwatched(_done: int, _total: int) -> None:
    """Nobody looks."""


def group_key(config: TrainConfig) -> str | None:
    """Runs with equal keys are heads on the same fixed features, trained in one computation; None trains alone."""
    if why_alone(config) is not None:
        return None
    content = dataclasses.asdict(config)
    backbone = {**content["backbone"], "weights": weights_digest(config.backbone.weights)}
    trainer = {key: content["trainer"][key] for key in ("accelerator", "precision", "memory_format")}
    seed = config.seed if config.backbone.weights == "random" else None  # of the backbone's weights
    parts = [
        source_key(config.dataset),
        content["augmentation"],
        content["feature_cache"],
        backbone,
        trainer,
        content["debug"],
        seed,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def source_key(dataset: Dataset) -> str:
    """Equal for datasets with the same images, whichever of them are used."""
    content = {key: value for key, value in dataclasses.asdict(dataset).items() if key not in _SUBSET}
    return json.dumps(content, sort_keys=True)


def why_alone(config: TrainConfig) -> str | None:
    """Why the run needs Lightning's loop, in a few words; None where heads on fixed features do."""
    trainer = config.trainer
    reasons = {
        f"freeze_strategy={config.freeze_strategy.name}": not trains_head_only(config.freeze_strategy),
        f"head={config.head.name}": not (config.head.is_solved or isinstance(config.head, Linear)),
        "head.dropout": isinstance(config.head, Linear) and config.head.dropout > 0,
        f"optimizer={config.optimizer.name}": not isinstance(config.optimizer, (AdamW, SGD)),
        f"trainer={trainer.name}": trainer.name != "default",
        "trainer.ema_decay": trainer.ema_decay is not None,
        "trainer.early_stopping_patience": trainer.early_stopping_patience is not None,
        "trainer.accumulation": trainer.accumulation > 1,
        "trainer.compile_backend": trainer.compile_backend is not None,
        "debug.profile": config.debug.profile,
        "a backbone that is re-initialised": config.freeze_strategy.reinitialize_backbone,
    }
    if config.head.is_solved:
        return None
    return why_live(config) or next((reason for reason, applies in reasons.items() if applies), None)


def why_live(config: TrainConfig) -> str | None:
    """Why frozen parts are computed in each step, in a few words; None where they are computed once an image."""
    name, cache = config.augmentation.name, config.feature_cache
    if config.trainer.name == "fsdp":
        return "trainer=fsdp divides frozen blocks too"
    if cache.name == "off":
        return "feature_cache=off"
    if name in ("mixup", "cutmix"):
        return f"augmentation={name} mixes images"
    if name != "none" and cache.views is None:
        return f"augmentation={name} makes each view anew (feature_cache.views=k would keep k)"
    return None
