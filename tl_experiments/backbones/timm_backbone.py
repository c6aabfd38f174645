"""Any timm model as a backbone: pooled features in, ordered blocks and preprocessing beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from tl_experiments.backbones.create import create_net, try_out
from tl_experiments.backbones.tokens import TokenFormat, as_tokens, remove_pooling, token_format
from tl_experiments.backbones.weights import WeightsReport, load_weights
from tl_experiments.config.backbones import BackboneConfig, Interpolation, Preprocessing


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


@dataclass(frozen=True)
class TrainedOn:
    """Images that the weights were trained on, each fact None where it is not known or there are no weights.

    Args:
        image_size: Side in pixels.
        channels: Of an image.
    """

    image_size: int | None
    channels: int | None


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Args:
        net: Built with ``num_classes=0``.
        input_spec: Its preprocessing.
        report: Where its weights came from.
        trained_on: And on what.

    Attributes:
        feature_dim: Of the pooled features, or of a token.
        tokens: How ``net``, where its pooling was removed, lays out its tokens; None where it pools.
        n_tokens: Tokens of an image, None where it pools.
    """

    def __init__(self, net: nn.Module, input_spec: InputSpec, report: WeightsReport, trained_on: TrainedOn) -> None:
        super().__init__()
        self.net = net
        self.input_spec = input_spec
        self.report = report
        self.trained_on = trained_on
        self.feature_dim = int(net.head_hidden_size)  # type: ignore[arg-type]
        self.tokens: TokenFormat | None = None
        self.n_tokens: int | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``(n, channels, size, size)`` to pooled features ``(n, feature_dim)``, or to all tokens
        ``(n, tokens, feature_dim)``."""
        features = self.net.forward_head(self.net.forward_features(image), pre_logits=True)  # type: ignore[operator]
        return features if self.tokens is None else as_tokens(features, self.tokens)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = create_net(cfg, channels)
    spec = _input_spec(net, cfg.preprocessing, channels)
    try_out(net, cfg, spec.image_size, channels)
    report = load_weights(net, cfg)
    backbone = TimmBackbone(net, spec, report, _trained_on(net, cfg, report))
    if tokens:
        remove_pooling(net, cfg.name)
        features = try_out(net, cfg, spec.image_size, channels)
        backbone.tokens = token_format(net, features, backbone.feature_dim, cfg.name)
        backbone.n_tokens = as_tokens(features, backbone.tokens).shape[1]
    return backbone


def _input_spec(net: nn.Module, overrides: Preprocessing, channels: int) -> InputSpec:
    default = resolve_model_data_config(net)
    return InputSpec(
        image_size=overrides.image_size or int(default["input_size"][-1]),
        mean=overrides.mean or _per_channel(default["mean"], channels),
        std=overrides.std or _per_channel(default["std"], channels),
        interpolation=overrides.interpolation or cast(Interpolation, default["interpolation"]),
        crop_fraction=overrides.crop_fraction or float(default["crop_pct"]),
    )


def _per_channel(pretrained: Sequence[float], channels: int) -> tuple[float, ...]:
    """Values for three colours, or their mean for each of another number of channels."""
    return tuple(pretrained) if len(pretrained) == channels else (fmean(pretrained),) * channels


def _trained_on(net: nn.Module, cfg: BackboneConfig, report: WeightsReport) -> TrainedOn:
    if cfg.weights != "pretrained":
        return TrainedOn(report.image_size, None)
    channels, *_, size = net.pretrained_cfg["input_size"]  # type: ignore[index]
    return TrainedOn(int(size), int(channels))
