"""Which parameters of a model belong to its normalisation layers."""

from __future__ import annotations

import inspect

from timm.layers import evo_norm, filter_response_norm, grn, norm, norm_act
from torch import nn

_TORCH = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)
# Every module class of timm's files of norms; some of them derive from none of torch's.
_TIMM = tuple(
    cls
    for file in (norm, norm_act, evo_norm, filter_response_norm, grn)
    for _, cls in inspect.getmembers(file, inspect.isclass)
    if issubclass(cls, nn.Module) and cls.__module__ == file.__name__
)
_NORMS: tuple[type[nn.Module], ...] = (*_TORCH, *_TIMM)


def norm_parameters(net: nn.Module) -> frozenset[str]:
    """Names of the parameters that a normalisation layer owns itself: not those of an activation inside it."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in net.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    )
