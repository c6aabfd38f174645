"""timm models as bare nets, and how timm would load weights into them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import _builder as timm_builder
from torch import nn

from tl_experiments.backbones.hub import fetch_from_hub
from tl_experiments.backbones.sizes import for_images, size_error
from tl_experiments.errors import ConfigError

_FROM_HUB = re.compile(r"^hf[-_]hub:")


@dataclass(frozen=True)
class Net:
    """A timm model without its classifier, its weights still random.

    Args:
        module: Built with ``num_classes=0``.
        name: In timm.
        kwargs: Of ``timm.create_model``.
        loading: Arguments that timm chose for ``timm.models.load_pretrained``, above all the function that maps names
            and shapes of this family's checkpoints; empty for a net that is meant to stay random.
    """

    module: nn.Module
    name: str
    kwargs: Mapping[str, Any]
    loading: Mapping[str, Any]


def create_net(
    name: str, kwargs: Mapping[str, Any], image_size: int | None, seed: int, for_weights: bool, channels: int = 3
) -> Net:
    """Build the model.

    Args:
        name: In timm.
        kwargs: Of ``timm.create_model``.
        image_size: Side of the input in pixels, for nets that are built for one size; null is the pretrained size.
        seed: Of the random initialisation.
        for_weights: Build it as timm does when weights follow; a few models then have other settings.
        channels: Of the images.

    Raises:
        ConfigError: timm refuses an argument, or the model cannot be built for that size.
        WeightsError: The hub's description of an ``hf-hub:`` model cannot be had.
    """
    given, kwargs = kwargs, for_images(name, kwargs, image_size, channels)
    if _FROM_HUB.match(name):  # here, where being without network is answered at once
        repo, _, revision = name.partition(":")[2].partition("@")
        fetch_from_hub(repo, ("config.json",), revision or None, kwargs.get("cache_dir"))
    with torch.random.fork_rng(devices=[]), _loading_put_off() as loading:
        torch.manual_seed(seed)
        try:
            module = timm.create_model(name, pretrained=for_weights, num_classes=0, **kwargs)
        except AssertionError as error:
            raise size_error(name, given, image_size, channels, error) from None
        except TypeError as error:
            if "img_size" in str(error) and "img_size" not in given:
                raise size_error(name, given, image_size, channels, error) from None
            raise ConfigError(
                "backbone.kwargs", f"timm refuses them for {name} ({error})", "see timm.create_model"
            ) from None
    return Net(module, name, kwargs, loading)


def input_channels(net: nn.Module) -> int:
    """Channels of the image that the net takes."""
    return int(getattr(net, "in_chans", 3))


@contextmanager
def _loading_put_off() -> Iterator[dict[str, Any]]:
    """Within, timm builds models without loading weights, and what it would have loaded them with is kept.

    It is the only place where timm says which checkpoint filter belongs to a model: some families share one, some bind
    options to it.
    """
    kept: dict[str, Any] = {}
    loads = timm_builder.load_pretrained
    timm_builder.load_pretrained = lambda _model, **arguments: kept.update(arguments)
    try:
        yield kept
    finally:
        timm_builder.load_pretrained = loads
