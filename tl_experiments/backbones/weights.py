"""Loading weights, with an account of every tensor: what does not fit is an error, never skipped in silence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tl_experiments.backbones.locate import CHECKPOINT_FILE, locate, weights_digest
from tl_experiments.config.backbones import BackboneConfig
from tl_experiments.errors import WeightsError
from tl_experiments.records import RECORD_FILE

# Counts batches for BatchNorm's cumulative average; older files lack it and nothing that we run reads it.
_OPTIONAL = re.compile(r"(^|\.)num_batches_tracked$")


@dataclass(frozen=True)
class WeightsReport:
    """Where weights came from.

    Args:
        source: ``random``, timm's hub name, or the file's path.
        sha256: Of the file; None for random weights and where the hub did not say.
        matched: Tensors of the backbone that the source filled.
        classifier_dropped: Tensors of the source's own classifier, which a new head replaces.
        pretraining_s: Seconds of own pretraining that made the file, all links of the chain together.
        image_size: Side in pixels of the images that an own checkpoint was trained on; None where it is not known.
    """

    source: str
    sha256: str | None
    matched: int
    classifier_dropped: int = 0
    pretraining_s: float = 0.0
    image_size: int | None = None


def load_weights(net: nn.Module, cfg: BackboneConfig) -> WeightsReport:
    """Fill ``net`` from ``cfg.weights``; every tensor of the backbone must be matched.

    Raises:
        WeightsError: Missing, unexpected or misshapen tensors, an unreadable file, or another backbone's checkpoint.
    """
    path = locate(cfg.weights)
    if path is None:
        source = "random" if cfg.weights == "random" else _hub_name(net)
        return WeightsReport(source, None, 0 if cfg.weights == "random" else len(net.state_dict()))
    image_size = _own_image_size(path, cfg)
    state = _backbone_part(_read(path))
    classifier = _classifier_names(net)
    dropped = [name for name in state if name.rpartition(".")[0] in classifier]
    state = {name: tensor for name, tensor in state.items() if name not in dropped}
    _refuse_mismatch(net, state, path)
    net.load_state_dict(state, strict=False)  # strict but for the optional counters: checked above
    return WeightsReport(
        str(path), weights_digest(cfg.weights), len(state), len(dropped), _pretraining_s(path), image_size
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a state_dict")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(
            str(path), f"cannot be read ({reason})", "give a .safetensors file or a plain state_dict"
        ) from None
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _backbone_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An own checkpoint holds ``backbone.net.*`` and ``head.*``; a timm checkpoint holds the bare names."""
    own = {name.removeprefix("backbone.net."): t for name, t in state.items() if name.startswith("backbone.net.")}
    return own or state


def _classifier_names(net: nn.Module) -> set[str]:
    names = getattr(net, "default_cfg", {}).get("classifier") or ()
    return {names} if isinstance(names, str) else set(names)


def _refuse_mismatch(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state and not _OPTIONAL.search(name)]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    if missing or unexpected or misshapen:
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(misshapen)} of another shape"
        example = (missing or unexpected or misshapen)[0]
        raise WeightsError(
            "backbone.weights",
            f"{path} does not fit: {counts}, e.g. {example}, of {len(wanted)} expected",
            "check backbone.name and backbone.kwargs against the file",
        )


def _own_image_size(path: Path, cfg: BackboneConfig) -> int | None:
    """Check an own checkpoint against the facts beside it, its hash and its backbone; returns its image size."""
    side = path.with_suffix(".json")
    if path.name != CHECKPOINT_FILE or not side.is_file():
        return None
    facts = _json(side)
    theirs, name = facts.get("backbone"), cfg.name
    if facts.get("sha256") != weights_digest(cfg.weights):
        raise WeightsError(
            str(path), f"not the file that {side.name} describes (sha256)", "it is damaged: run its job again"
        )
    if theirs != name:
        raise WeightsError(
            "backbone.weights", f"{path} holds {theirs}, the backbone is {name}", f"backbone.name={theirs}"
        )
    size = facts.get("input", {}).get("image_size")
    return int(size) if size is not None else None


def _pretraining_s(path: Path) -> float:
    record = path.parent / RECORD_FILE
    if not record.is_file():
        return 0.0
    content = _json(record)
    return float(content["wall_clock_s"]) + float(content["pretraining_s"])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            str(path), f"cannot be read ({error})", "run the source again, or move the file away"
        ) from None
    assert isinstance(content, dict)
    return content


def _hub_name(net: nn.Module) -> str:
    """What timm says of the origin; which of the keys it fills depends on the model's age."""
    cfg = getattr(net, "pretrained_cfg", {})
    return str(cfg.get("hf_hub_id") or cfg.get("url") or cfg.get("file") or "pretrained")
