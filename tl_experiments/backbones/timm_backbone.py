"""Any timm model as a backbone: pooled features in, ordered blocks and preprocessing beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from tl_experiments.backbones.nets import Net, create_net
from tl_experiments.backbones.report import WeightsReport
from tl_experiments.backbones.sizes import try_out
from tl_experiments.backbones.tokens import TokenFormat, as_tokens, remove_pooling, token_format
from tl_experiments.backbones.weights import AS_PRETRAINED, is_own, load_weights, starts_random
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

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.mean)

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> InputSpec:
        """What JSON made of one."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Args:
        net: Built with ``num_classes=0``.
        input_spec: Its preprocessing.
        report: Where its weights came from.

    Attributes:
        feature_dim: Of the pooled features, or of a token.
        tokens: How ``net``, where its pooling was removed, lays out its tokens; None where it pools.
        n_tokens: Tokens of an image, None where it pools.
    """

    def __init__(self, net: nn.Module, input_spec: InputSpec, report: WeightsReport) -> None:
        super().__init__()
        self.net = net
        self.input_spec = input_spec
        self.report = report
        self.feature_dim = int(net.head_hidden_size)  # type: ignore[arg-type]
        self.tokens: TokenFormat | None = None
        self.n_tokens: int | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``(n, channels, size, size)`` to pooled features ``(n, feature_dim)``, or to all tokens
        ``(n, tokens, feature_dim)``."""
        features = self.net.forward_head(self.net.forward_features(image), pre_logits=True)  # type: ignore[operator]
        return features if self.tokens is None else as_tokens(features, self.tokens)

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


def build_backbone(cfg: BackboneConfig, seed: int, channels: int = 3, *, tokens: bool = False) -> TimmBackbone:
    """Create the timm model and load its weights.

    Args:
        cfg: Name, weights, ``create_model`` arguments, preprocessing overrides.
        seed: Of the random initialisation, which also is the start of what no weights file covers.
        channels: Of the images.
        tokens: Whether the head reads tokens: then the backbone does not pool.

    Raises:
        ConfigError: timm refuses a ``backbone.kwargs`` argument, the net does not take images of that size, or the
            family cannot give tokens.
        WeightsError: The weights cannot be had or do not fit.
    """
    size = cfg.preprocessing.image_size
    net = create_net(cfg.name, cfg.kwargs, size, seed, for_weights=not starts_random(cfg), channels=channels)
    spec = _input_spec(net, cfg.preprocessing, channels)
    try_out(net.module, net.name, net.kwargs, spec.image_size, channels)
    return _loaded(net, cfg, spec, tokens=tokens)


def input_spec(cfg: BackboneConfig, channels: int = 3) -> InputSpec:
    """What ``build_backbone`` would want to see, without its weights: the net is built without memory.

    Raises:
        ConfigError: timm refuses an argument, or the net does not take images of that size.
    """
    with torch.device("meta"):
        size = cfg.preprocessing.image_size
        net = create_net(cfg.name, cfg.kwargs, size, 0, for_weights=not starts_random(cfg), channels=channels)
    return _input_spec(net, cfg.preprocessing, channels)


def restore_backbone(
    path: Path, facts: Mapping[str, Any], *, tokens: bool = False, instead: Path | None = None
) -> TimmBackbone:
    """The backbone of a run as it was tested.

    Args:
        path: The run's checkpoint.
        facts: What stands beside it; see ``checkpoint_facts``.
        tokens: Whether the run's head reads tokens.
        instead: A file in the place of the checkpoint's base, see ``base_of``.

    Raises:
        WeightsError: The checkpoint is damaged, or the base that it needs is gone or another.
    """
    spec = InputSpec.stored(facts["input"])
    cfg = BackboneConfig(name=facts["backbone"], weights=str(path), kwargs=facts["kwargs"], preprocessing=AS_PRETRAINED)
    random = starts_random(cfg)
    net = create_net(cfg.name, cfg.kwargs, spec.image_size, seed=0, for_weights=not random, channels=spec.channels)
    return _loaded(net, cfg, spec, tokens=tokens, instead=instead)


def blank_backbone(facts: Mapping[str, Any], *, starts_random: bool, tokens: bool = False) -> TimmBackbone:
    """The backbone of a run with random weights, for tensors that are loaded over all of them.

    Args:
        facts: What stands beside the run's checkpoint.
        starts_random: Whether no weights from elsewhere stood at its start.
        tokens: Whether the run's head reads tokens.
    """
    spec, kwargs = InputSpec.stored(facts["input"]), facts["kwargs"]
    cfg = BackboneConfig(name=facts["backbone"], weights="random", kwargs=kwargs, preprocessing=AS_PRETRAINED)
    net = create_net(cfg.name, kwargs, spec.image_size, seed=0, for_weights=not starts_random, channels=spec.channels)
    return _loaded(net, cfg, spec, tokens=tokens)


def _loaded(
    net: Net, cfg: BackboneConfig, spec: InputSpec, *, tokens: bool, instead: Path | None = None
) -> TimmBackbone:
    """The net with its weights; without its pooling, and the parameters that only this had, where tokens are read."""
    own = is_own(cfg)  # its names are the net's, whether it pooled or not; other files need timm's own loading of all
    pooling: set[str] = set()
    if tokens and own:
        before = set(net.module.state_dict())
        remove_pooling(net.module, cfg.name)
        pooling = before - set(net.module.state_dict())
    report = load_weights(net, cfg, leave_out=pooling, instead=instead)
    if tokens and not own:
        remove_pooling(net.module, cfg.name)
    backbone = TimmBackbone(net.module, spec, report)
    if tokens:
        features = try_out(net.module, net.name, net.kwargs, spec.image_size, spec.channels)
        backbone.tokens = token_format(net.module, features, backbone.feature_dim, cfg.name)
        backbone.n_tokens = as_tokens(features, backbone.tokens).shape[1]
    return backbone


def _input_spec(net: Net, overrides: Preprocessing, channels: int) -> InputSpec:
    default = resolve_model_data_config(net.module)
    return InputSpec(
        image_size=overrides.image_size or net.kwargs.get("img_size") or int(default["input_size"][-1]),
        mean=overrides.mean or _per_channel(default["mean"], channels),
        std=overrides.std or _per_channel(default["std"], channels),
        interpolation=overrides.interpolation or cast(Interpolation, default["interpolation"]),
        crop_fraction=overrides.crop_fraction or float(default["crop_pct"]),
    )


def _per_channel(pretrained: Sequence[float], channels: int) -> tuple[float, ...]:
    """Values for three colours, or their mean for each of another number of channels."""
    return tuple(pretrained) if len(pretrained) == channels else (fmean(pretrained),) * channels
