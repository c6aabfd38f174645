"""Which images a timm model takes, and one line with a size that works where it does not take the one asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from tl_experiments.errors import ConfigError, first_line

_STEP = 16  # sizes that are tried for an error's advice are multiples of it, or of the patch size
_TRIED = 6

# What timm's models raise where an image does not fit: by design or from within.
_MISFITS = (AssertionError, RuntimeError, ValueError, IndexError)


def for_images(name: str, kwargs: Mapping[str, Any], size: int | None, channels: int) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` for images of that size and number of channels.

    Args:
        name: In timm.
        kwargs: The user's.
        size: Side in pixels; null is the pretrained size. Only families with a fixed input size are told.
        channels: Of the images.

    Raises:
        ConfigError: ``in_chans`` among the user's arguments contradicts the images.
    """
    kwargs = dict(kwargs)
    if kwargs.get("in_chans", channels) != channels:
        what = f"got {kwargs['in_chans']}, the images have {channels} channels"
        raise ConfigError("backbone.kwargs.in_chans", what, "leave it out: it follows the data")
    if channels != 3:
        kwargs["in_chans"] = channels
    if size is not None and _has_fixed_input_size(name):
        kwargs.setdefault("img_size", size)
    return kwargs


def try_out(net: nn.Module, name: str, kwargs: Mapping[str, Any], size: int, channels: int) -> Tensor:
    """The features of one blank image, computed in eval mode; modes are left as they were.

    Raises:
        ConfigError: The net does not take images of that size, or would cut off their border.
    """
    was_training = net.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _features(net.eval(), size, channels)
    except _MISFITS as error:
        raise size_error(name, kwargs, size, channels, error) from None
    finally:
        net.train(was_training)


def size_error(name: str, kwargs: Mapping[str, Any], size: int | None, channels: int, error: Exception) -> ConfigError:
    """The error for a size that a model does not take, with the nearest one that it does."""
    default = _default_size(name)
    works = _nearest(name, kwargs, size or default, channels, default)
    return ConfigError(
        "backbone.preprocessing.image_size",
        f"{name} does not take images of {size or default} px ({first_line(error)})",
        f"backbone.preprocessing.image_size={works} works" if works else "see backbone.kwargs, or another backbone",
    )


def _features(net: nn.Module, size: int, channels: int) -> Tensor:
    embed = _patch_embed(net)
    if embed is not None and not embed.dynamic_img_pad and size % embed.patch_size[0]:
        raise ValueError(f"the patch size {embed.patch_size[0]} does not divide it")  # timm cuts the border off
    image = torch.zeros(1, channels, size, size)
    features: Tensor = net.forward_head(net.forward_features(image), pre_logits=True)  # type: ignore[operator]
    return features


def _nearest(name: str, kwargs: Mapping[str, Any], size: int, channels: int, default: int) -> int | None:
    """The nearest size that works, of a few; tried on torch's meta device, where a model costs milliseconds."""
    kwargs = {key: value for key, value in kwargs.items() if key != "img_size"}
    with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        step = _patch_size(name, kwargs, default, channels)
        multiples = [step * number for number in range(1, 2 * max(size, default) // step + 1)]
        for candidate in (*sorted(multiples, key=lambda multiple: abs(multiple - size))[:_TRIED], default):
            try:
                _features(_create(name, kwargs, candidate, channels).eval(), candidate, channels)
            except (*_MISFITS, TypeError):
                continue
            return candidate
    return None


def _create(name: str, kwargs: Mapping[str, Any], size: int, channels: int) -> nn.Module:
    return timm.create_model(name, num_classes=0, **for_images(name, kwargs, size, channels))


def _patch_size(name: str, kwargs: Mapping[str, Any], default: int, channels: int) -> int:
    try:
        embed = _patch_embed(_create(name, kwargs, default, channels))
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
