"""Under which key what a frozen prefix makes of the images may be kept: equal keys, equal numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from tl_experiments.features.split import Split

_LIBRARIES = ("torch", "torchvision", "timm", "pillow")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


@dataclass(frozen=True, kw_only=True)
class ActivationFacts:
    """What fixes the activations beside the prefix itself.

    Args:
        backbone: timm's name.
        kwargs: Of ``timm.create_model``, plain values.
        transform: From the file to the uint8 image: geometry, version, random view where there is one.
        precision: Of the computation and of what is kept, for example ``32-true float32``.
        data: Fingerprint of the dataset.
        device: Type of the device, whose kernels round in their own way, and whether they are compiled.
        versions: Of the libraries that decode and compute.
    """

    backbone: str
    kwargs: Mapping[str, Any]
    transform: str
    precision: str
    data: str
    device: str
    versions: Mapping[str, str] = field(default_factory=_versions)


def activation_key(split: Split, facts: ActivationFacts) -> str:
    """40 hexadecimal digits that change with every bit that the prefix reads, with its program and with ``facts``.

    What lies behind the cut does not enter: two runs whose trained parts differ share what is kept.

    Raises:
        TypeError: A value of ``facts.kwargs`` is not a plain one.
    """
    content = {**asdict(facts), "program": split.program, "state": state_digest(split.prefix_state)}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=20).hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes, in the order of the names; 40 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(state.items()):
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
        if content.numel():
            digest.update(content.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
