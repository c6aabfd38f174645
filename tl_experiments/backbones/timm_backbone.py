"""Any timm model as a backbone: pooled features in, ordered blocks and preprocessing beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from tl_experiments.backbones.nets import create_net
from tl_experiments.backbones.report import WeightsReport
from tl_experiments.backbones.weights import AS_PRETRAINED, load_weights, starts_random
from tl_experiments.config.backbones import BackboneConfig, Interpolation, Preprocessing
from tl_experiments.errors import ConfigError


@dataclass(frozen=True)
class InputSpec:
    """What the backbone wants to see.

    Args:
        image_size: Side of the square input in pixels.
        mean: Per channel, of pixel values in [0, 1].
        std: Per channel, of pixel values in [0, 1].
        interpolation: Name of the resize filter.
        crop_fraction: Side of the central crop as a share of the resized short side, in (0, 1].
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    crop_fraction: float


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Args:
        net: Built with ``num_classes=0``.
        input_spec: Its preprocessing.
        report: Where its weights came from.
    """

    def __init__(self, net: nn.Module, input_spec: InputSpec, report: WeightsReport) -> None:
        super().__init__()
        self.net = net
        self.input_spec = input_spec
        self.report = report
        self.feature_dim = int(net.head_hidden_size)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``(n, 3, size, size)`` to pooled features ``(n, feature_dim)``."""
        return self.net.forward_head(self.net.forward_features(image), pre_logits=True)  # type: ignore[operator]

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass instead of keeping them (Chen et al., 2016).

        Raises:
            ConfigError: timm has no gradient checkpointing for this model.
        """
        try:
            self.net.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError):
            raise ConfigError(
                "trainer.gradient_checkpointing", f"timm has none for {type(self.net).__name__}", "leave it false"
            ) from None


def build_backbone(cfg: BackboneConfig, seed: int) -> TimmBackbone:
    """Create the timm model and load its weights.

    Args:
        cfg: Name, weights, ``create_model`` arguments, preprocessing overrides.
        seed: Of the random initialisation, which also is the start of what no weights file covers.

    Raises:
        ConfigError: timm refuses a ``backbone.kwargs`` argument.
        WeightsError: The weights cannot be had or do not fit.
    """
    size = cfg.preprocessing.image_size
    net = create_net(cfg.name, cfg.kwargs, size, seed, for_weights=not starts_random(cfg))
    if size is not None and "img_size" in net.kwargs:
        _check_input_size(net.module, size, cfg.name)
    report = load_weights(net, cfg)
    return TimmBackbone(net.module, _input_spec(net.module, cfg.preprocessing), report)


def restore_backbone(path: Path, facts: Mapping[str, Any]) -> TimmBackbone:
    """The backbone of a run as it was tested.

    Args:
        path: The run's checkpoint.
        facts: What stands beside it; see ``checkpoint_facts``.

    Raises:
        WeightsError: The checkpoint is damaged, or the base that it needs is gone or another.
    """
    spec = InputSpec(**{**facts["input"], **{key: tuple(facts["input"][key]) for key in ("mean", "std")}})
    cfg = BackboneConfig(name=facts["backbone"], weights=str(path), kwargs=facts["kwargs"], preprocessing=AS_PRETRAINED)
    net = create_net(cfg.name, cfg.kwargs, spec.image_size, seed=0, for_weights=not starts_random(cfg))
    report = load_weights(net, cfg)
    return TimmBackbone(net.module, spec, report)


def _check_input_size(net: nn.Module, size: int, name: str) -> None:
    """Let a model of a fixed input size see one image: some cannot be built for another size and say nothing."""
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise ConfigError(
            "backbone.preprocessing.image_size", f"{name} does not take images of {size} px ({reason})", "leave it null"
        ) from None
    net.train(was_training)


def _input_spec(net: nn.Module, overrides: Preprocessing) -> InputSpec:
    default = resolve_model_data_config(net)
    return InputSpec(
        image_size=overrides.image_size or int(default["input_size"][-1]),
        mean=tuple(overrides.mean or default["mean"]),
        std=tuple(overrides.std or default["std"]),
        interpolation=overrides.interpolation or cast(Interpolation, default["interpolation"]),
        crop_fraction=overrides.crop_fraction or float(default["crop_pct"]),
    )
