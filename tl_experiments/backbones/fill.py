"""Tensors into a net by timm's own loading, compared with the net before a single one is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_pretrained
from torch import Tensor, nn

from tl_experiments.backbones.nets import Net, create_net, input_channels
from tl_experiments.backbones.report import COUNTER, Names, WeightsReport
from tl_experiments.errors import WeightsError, first_line


def fill(net: Net, state: dict[str, Tensor], source: str, channels: int | None = None) -> WeightsReport:
    """Hand a checkpoint to timm's own loading of the family, and account for what it makes of it.

    Names are mapped, position embeddings resized, the input convolution adapted, the classifier dropped by timm; what
    it would then load is compared with the net before a single tensor is.

    Args:
        net: Freshly built.
        state: The tensors of the file.
        source: Named in errors.
        channels: Of the images that the file was trained on, where timm does not know.

    Raises:
        WeightsError: Missing, unexpected or misshapen tensors, counted.
    """
    module, wanted = net.module, net.module.state_dict()
    if state.keys() == wanted.keys() and all(state[name].shape == wanted[name].shape for name in wanted):
        module.load_state_dict(state)  # an own checkpoint of this very net
        return WeightsReport(source=source, in_file=len(state), total=len(wanted), matched=len(wanted))
    loading = net.loading or create_net(net.name, net.kwargs, None, seed=0, for_weights=True).loading
    filtered = _filtered(loading["filter_fn"], state, module)
    reports = []

    def account(_module: nn.Module, final: dict[str, Tensor], *_: Any) -> None:
        reports.append(
            _account(net, source, state, filtered, final, strict=loading["strict"], channels=int(cfg["input_size"][0]))
        )

    hook = module.register_load_state_dict_pre_hook(account)
    cfg = {**loading["pretrained_cfg"], "state_dict": dict(filtered), "source": None}
    if channels is not None:
        cfg["input_size"] = (channels, *cfg["input_size"][1:])
    try:
        # num_classes=-1 is no file's number of classes: the classifier goes in any case
        load_pretrained(module, cfg, num_classes=-1, in_chans=input_channels(module), strict=False)
    except RuntimeError as error:  # an input convolution that timm cannot adapt
        raise WeightsError(
            "backbone.weights", f"{source} does not fit: {first_line(error)}", "check backbone.kwargs against the file"
        ) from None
    finally:
        hook.remove()
    return reports[0]


def _filtered(filter_fn: Any, state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    if filter_fn is None:
        return state
    try:
        return dict(filter_fn(dict(state), module))
    except Exception:  # written for the family's own files; another's is counted as it stands
        return state


def _account(
    net: Net, source: str, state: Mapping[str, Tensor], filtered: Mapping[str, Tensor], final: dict[str, Tensor],
    *, strict: bool, channels: int,
) -> WeightsReport:  # fmt: skip
    """Compare what timm is about to load with the net; takes out of ``final`` what has no place there.

    Args:
        net: Still random.
        source: Named in errors.
        state: The tensors of the file.
        filtered: Those that the family's filter makes of them.
        final: Those that timm would load: without classifier, input convolution adapted.
        strict: Whether timm expects every tensor of the file to have a place.
        channels: Of the images that the file was trained on.
    """
    wanted = net.module.state_dict()
    missing = [name for name in wanted if name not in final]
    unexpected = [name for name in final if name not in wanted]
    mismatched = [name for name in final if name in wanted and final[name].shape != wanted[name].shape]
    beside = _beside_the_backbone(net) if unexpected and strict else set(unexpected)
    lost = [name for name in missing if not (COUNTER.search(name) or (not strict and _does_nothing_yet(wanted[name])))]
    foreign = [name for name in unexpected if name not in beside]
    if lost or foreign or mismatched:
        raise WeightsError(
            "backbone.weights",
            f"{source} does not fit: {len(lost)} tensors missing, {len(foreign)} unexpected, {len(mismatched)} of "
            f"another shape, e.g. {(lost or foreign or mismatched)[0]}, of {len(wanted)} expected",
            _advice(net, bool(lost or foreign)),
        )
    for name in unexpected:
        final.pop(name)
    resized = [name for name in final if name in state and state[name].numel() != filtered[name].numel()]
    prefix = int(getattr(net.module, "num_prefix_tokens", 0))
    return WeightsReport(
        source=source,
        in_file=len(state),
        total=len(wanted),
        matched=len(final),
        missing=Names.of(missing),
        unexpected=Names.of(unexpected),
        classifier_dropped=len(filtered) - len(final) - len(unexpected),
        resized={name: f"{_grid(state[name], prefix)} to {_grid(filtered[name], prefix)}" for name in resized},
        adapted={
            name: f"{channels} to {input_channels(net.module)}"
            for name in final
            if final[name].shape != filtered[name].shape
        },
    )


def _advice(net: Net, other_names: bool) -> str:
    """What to do about weights that do not fit; shapes alone differ where a family cannot be stretched to a size."""
    size = (getattr(net.module, "pretrained_cfg", None) or {}).get("input_size", (0,))[-1]
    if not other_names and size and net.kwargs.get("img_size", size) != size:
        return f"backbone.preprocessing.image_size={size}, or another backbone"
    return "check backbone.name and backbone.kwargs against the file"


def _does_nothing_yet(tensor: Tensor) -> bool:
    """A norm's scale of 1 or shift of 0."""
    return bool((tensor == tensor.flatten()[0]).all()) and tensor.flatten()[0].item() in (0, 1)


def _beside_the_backbone(net: Net) -> set[str]:
    """Tensors that the model with its classifier has and the net has not: nothing that features are made of."""
    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(net.name, **net.kwargs)
    return whole.state_dict().keys() - net.module.state_dict().keys()


def _grid(tensor: Tensor, prefix: int) -> str:
    """``14x14`` for position embeddings ``(1, prefix + 14 * 14, dim)`` or a bias table ``(14 * 14, heads)``."""
    tokens = tensor.shape[1] if tensor.ndim == 3 else tensor.shape[0]
    for count in (tokens - prefix, tokens):
        side = math.isqrt(max(count, 0))
        if tensor.ndim in (2, 3) and side * side == count:
            return f"{side}x{side}"
    return "x".join(str(length) for length in tensor.shape)


def run_own_loader(net: Net, path: Path) -> WeightsReport:
    """timm's loader of the model's own fills the net without naming tensors; count those that it changed.

    Raises:
        WeightsError: The loader cannot read the file.
    """
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    try:
        net.module.load_pretrained(str(path))  # type: ignore[operator]
    except Exception as error:
        raise WeightsError(
            str(path), f"timm's loader for it fails ({first_line(error)})", "give backbone.weights=<another file>"
        ) from None
    after = net.module.state_dict()
    same = [name for name in before if torch.equal(before[name], after[name])]
    return WeightsReport(
        source=str(path), total=len(after), matched=len(after) - len(same), missing=Names.of(same), own_loader=True
    )
