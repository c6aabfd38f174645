"""A timm model for images of a size and a number of channels, or one line about what it can take."""

from __future__ import annotations

import logging
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from tl_experiments.config.backbones import BackboneConfig
from tl_experiments.errors import ConfigError, WeightsError

_STEP = 16  # sizes that are tried for an error's advice are multiples of it, or of the patch size
_TRIED = 6

# What timm's models raise where an image does not fit: by design or from within.
_MISFITS = (AssertionError, RuntimeError, ValueError, IndexError)


def create_net(cfg: BackboneConfig, channels: int) -> nn.Module:
    """The timm model without classifier, with timm's own weights where ``cfg.weights`` is ``pretrained``.

    It is built for ``preprocessing.image_size`` where its family has a fixed input size, and for ``channels``: timm
    then adapts the first convolution of pretrained weights.

    Raises:
        ConfigError: timm refuses a ``backbone.kwargs`` argument, or the family cannot be built for that size.
        WeightsError: The pretrained weights cannot be had, or do not fit that size.
    """
    size = cfg.preprocessing.image_size
    pretrained = cfg.weights == "pretrained"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails in the end is said below
    try:
        return _create(cfg, size, channels, pretrained)
    except AssertionError as error:
        raise _size_error(cfg, size, channels, error) from None
    except TypeError as error:
        if "img_size" in str(error) and "img_size" not in cfg.kwargs:
            raise _size_error(cfg, size, channels, error) from None
        raise ConfigError(
            "backbone.kwargs", f"timm refuses them for {cfg.name} ({error})", "see timm.create_model"
        ) from None
    except (OSError, RuntimeError) as error:  # no network, no such file on the hub, or no weights of that name
        if not pretrained:
            raise
        reason = _first_line(error)
        if "size mismatch" in str(error):
            raise WeightsError(
                "backbone.weights",
                f"the pretrained weights of {cfg.name} do not fit {size} px and {channels} channels ({reason})",
                f"backbone.preprocessing.image_size={_default_size(cfg.name)}, or another backbone",
            ) from None
        raise WeightsError(
            "backbone.weights",
            f"the pretrained weights of {cfg.name} could not be had ({reason})",
            "run once with network to fill the hub's cache, or give backbone.weights=<file> or random",
        ) from None


def try_out(net: nn.Module, cfg: BackboneConfig, size: int, channels: int) -> Tensor:
    """The features of one blank image, computed in eval mode; modes are left as they were.

    Raises:
        ConfigError: The net does not take images of that size, or would cut off their border.
    """
    was_training = net.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _features(net.eval(), size, channels)
    except _MISFITS as error:
        raise _size_error(cfg, size, channels, error) from None
    finally:
        net.train(was_training)


def _create(cfg: BackboneConfig, size: int | None, channels: int, pretrained: bool) -> nn.Module:
    kwargs: dict[str, Any] = dict(cfg.kwargs)
    if kwargs.get("in_chans", channels) != channels:
        what = f"got {kwargs['in_chans']}, the images have {channels} channels"
        raise ConfigError("backbone.kwargs.in_chans", what, "leave it out: it follows the data")
    if channels != 3:
        kwargs["in_chans"] = channels
    if size is not None and _has_fixed_input_size(cfg.name):
        kwargs.setdefault("img_size", size)
    return timm.create_model(cfg.name, pretrained=pretrained, num_classes=0, **kwargs)


def _features(net: nn.Module, size: int, channels: int) -> Tensor:
    embed = _patch_embed(net)
    if embed is not None and not embed.dynamic_img_pad and size % embed.patch_size[0]:
        raise ValueError(f"the patch size {embed.patch_size[0]} does not divide it")  # timm cuts the border off
    image = torch.zeros(1, channels, size, size)
    features: Tensor = net.forward_head(net.forward_features(image), pre_logits=True)  # type: ignore[operator]
    return features


def _size_error(cfg: BackboneConfig, size: int | None, channels: int, error: Exception) -> ConfigError:
    default = _default_size(cfg.name)
    works = _nearest(cfg, size or default, channels, default)
    return ConfigError(
        "backbone.preprocessing.image_size",
        f"{cfg.name} does not take images of {size or default} px ({_first_line(error)})",
        f"backbone.preprocessing.image_size={works} works" if works else "see backbone.kwargs, or another backbone",
    )


def _nearest(cfg: BackboneConfig, size: int, channels: int, default: int) -> int | None:
    """The nearest size that works, of a few; tried on torch's meta device, where a model costs milliseconds."""
    with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        step = _patch_size(cfg, default, channels)
        multiples = [step * number for number in range(1, 2 * max(size, default) // step + 1)]
        for candidate in (*sorted(multiples, key=lambda multiple: abs(multiple - size))[:_TRIED], default):
            try:
                _features(_create(cfg, candidate, channels, pretrained=False).eval(), candidate, channels)
            except (*_MISFITS, TypeError):
                continue
            return candidate
    return None


def _patch_size(cfg: BackboneConfig, default: int, channels: int) -> int:
    try:
        embed = _patch_embed(_create(cfg, default, channels, pretrained=False))
    except (*_MISFITS, TypeError):
        return _STEP
    return int(embed.patch_size[0]) if embed is not None and embed.patch_size[0] > 4 else _STEP


def _patch_embed(net: nn.Module) -> PatchEmbed | None:
    return next((module for module in net.modules() if isinstance(module, PatchEmbed)), None)


def _default_size(name: str) -> int:
    pretrained_cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(pretrained_cfg.input_size[-1]) if pretrained_cfg is not None else 224


def _has_fixed_input_size(name: str) -> bool:
    pretrained_cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(pretrained_cfg is not None and pretrained_cfg.fixed_input_size)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
