"""Any timm model as a backbone: pooled features in, ordered blocks and preprocessing beside them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from tl_experiments.backbones.tokens import TokenFormat, as_tokens, remove_pooling, token_format
from tl_experiments.backbones.weights import WeightsReport, load_weights
from tl_experiments.config.backbones import BackboneConfig, Interpolation, Preprocessing
from tl_experiments.errors import ConfigError, WeightsError


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
        tokens: How ``net``, whose pooling was removed, lays out its tokens; None where it pools.

    Attributes:
        n_tokens: Tokens of an image, None where it pools.
    """

    n_tokens: int | None = None

    def __init__(
        self, net: nn.Module, input_spec: InputSpec, report: WeightsReport, tokens: TokenFormat | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.input_spec = input_spec
        self.report = report
        self.tokens = tokens
        self.feature_dim = int(net.head_hidden_size)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``(n, 3, size, size)`` to pooled features ``(n, feature_dim)``, or to all tokens
        ``(n, tokens, feature_dim)``."""
        features = self.net.forward_head(self.net.forward_features(image), pre_logits=True)  # type: ignore[operator]
        return features if self.tokens is None else as_tokens(features, self.tokens)


def build_backbone(cfg: BackboneConfig, seed: int, *, tokens: bool = False) -> TimmBackbone:
    """Create the timm model and load its weights.

    Args:
        cfg: Name, weights, ``create_model`` arguments, preprocessing overrides.
        seed: Of the random initialisation, which also is the start of what no weights file covers.
        tokens: Whether the head reads tokens: then the backbone does not pool.

    Raises:
        ConfigError: timm refuses a ``backbone.kwargs`` argument, or the family cannot give tokens.
        WeightsError: The weights cannot be had or do not fit.
    """
    kwargs: dict[str, Any] = dict(cfg.kwargs)
    size = cfg.preprocessing.image_size
    if size is not None and _has_fixed_input_size(cfg.name):
        kwargs.setdefault("img_size", size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _create(cfg, kwargs)
    report = load_weights(net, cfg)
    spec = _input_spec(net, cfg.preprocessing)
    if not tokens:
        return TimmBackbone(net, spec, report)
    remove_pooling(net, cfg.name)
    backbone = TimmBackbone(net, spec, report)
    backbone.tokens = token_format(net, _try_out(backbone), backbone.feature_dim, cfg.name)
    backbone.n_tokens = _try_out(backbone).shape[1]
    return backbone


def _try_out(backbone: TimmBackbone) -> Tensor:
    """The features of one blank image."""
    size = backbone.input_spec.image_size
    backbone.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        features = backbone(torch.zeros(1, 3, size, size))
    backbone.train()
    return features


def _create(cfg: BackboneConfig, kwargs: dict[str, Any]) -> nn.Module:
    pretrained = cfg.weights == "pretrained"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails in the end is said below
    try:
        return timm.create_model(cfg.name, pretrained=pretrained, num_classes=0, **kwargs)
    except TypeError as error:
        raise ConfigError(
            "backbone.kwargs", f"timm refuses them for {cfg.name} ({error})", "see timm.create_model"
        ) from None
    except (OSError, RuntimeError) as error:  # no network, no such file on the hub, or no weights of that name
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(
            "backbone.weights",
            f"the pretrained weights of {cfg.name} could not be had ({reason})",
            "run once with network to fill the hub's cache, or give backbone.weights=<file> or random",
        ) from None


def _has_fixed_input_size(name: str) -> bool:
    pretrained_cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(pretrained_cfg is not None and pretrained_cfg.fixed_input_size)


def _input_spec(net: nn.Module, overrides: Preprocessing) -> InputSpec:
    default = resolve_model_data_config(net)
    return InputSpec(
        image_size=overrides.image_size or int(default["input_size"][-1]),
        mean=tuple(overrides.mean or default["mean"]),
        std=tuple(overrides.std or default["std"]),
        interpolation=overrides.interpolation or cast(Interpolation, default["interpolation"]),
        crop_fraction=overrides.crop_fraction or float(default["crop_pct"]),
    )
