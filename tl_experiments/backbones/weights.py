"""Loading weights, with an account of every tensor: what does not fit is an error, never skipped in silence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from tl_experiments.backbones.fill import fill, run_own_loader
from tl_experiments.backbones.hub import find_pretrained
from tl_experiments.backbones.locate import Base, base_of, check_base, checkpoint_facts, file_sha256, lineage_of, locate
from tl_experiments.backbones.nets import Net, create_net
from tl_experiments.backbones.report import WeightsReport
from tl_experiments.config.backbones import BackboneConfig, Preprocessing
from tl_experiments.errors import WeightsError, first_line

# Arguments of create_model that change no output in eval mode, or that the checkpoint's tensors are adapted to.
_MAY_DIFFER = re.compile(r"drop|^img_size$|^in_chans$|^cache_dir$")
AS_PRETRAINED = Preprocessing(image_size=None, mean=None, std=None, interpolation=None, crop_fraction=None)


def load_weights(
    net: Net,
    cfg: BackboneConfig,
    base: Base | None = None,
    leave_out: AbstractSet[str] = frozenset(),
    instead: Path | None = None,
) -> WeightsReport:
    """Fill ``net`` from ``cfg.weights``; every tensor of the backbone must be matched.

    An earlier run's checkpoint gives its backbone alone: a run that continues from it always gets a new head, also
    where the classes are the same.

    Args:
        net: Freshly built.
        cfg: Whose ``weights`` are loaded.
        base: Where the weights are the base of a checkpoint: they must be these to the bit.
        leave_out: Tensors of an own checkpoint for which the net, without its pooling, has no use.
        instead: A file in the place of a checkpoint's base, see ``base_of``.

    Raises:
        WeightsError: Missing, unexpected or misshapen tensors, an unreadable file, or another backbone's checkpoint.
    """
    if cfg.weights == "random":
        return WeightsReport(source="random", total=len(net.module.state_dict()))
    path = locate(cfg.weights)
    if path is not None:
        check_base(base, file_sha256(path))
        return _from_path(net, path, cfg, leave_out, instead)
    found = find_pretrained(net.module.pretrained_cfg, net.kwargs.get("cache_dir"), base and base.commit)  # type: ignore[arg-type]
    digest = file_sha256(found.path)
    check_base(base, digest)
    report = run_own_loader(net, found.path) if found.custom else fill(net, _read(found.path), found.source)
    size = int(net.module.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    return replace(report, source=found.source, sha256=digest, repo=found.repo, commit=found.commit, image_size=size)


def _from_path(
    net: Net, path: Path, cfg: BackboneConfig, leave_out: AbstractSet[str], instead: Path | None
) -> WeightsReport:
    facts = checkpoint_facts(path)
    if facts is None:
        report = fill(net, _backbone_part(_read(path), own=False), str(path))
        size = None
    else:
        _check_backbone(path, facts, cfg)
        state = {name: tensor for name, tensor in _complete(path, facts, instead).items() if name not in leave_out}
        report = fill(net, state, str(path), facts["kwargs"].get("in_chans"))
        size = facts["input"]["image_size"]
    lineage = lineage_of(path)
    return replace(
        report,
        sha256=file_sha256(path),
        lineage=lineage,
        pretraining_s=math.fsum(link["wall_clock_s"] for link in lineage),
        image_size=size,
    )


def _check_backbone(path: Path, facts: Mapping[str, Any], cfg: BackboneConfig) -> None:
    theirs = facts["backbone"]
    if theirs != cfg.name:
        raise WeightsError(
            "backbone.weights", f"{path} holds {theirs}, the backbone is {cfg.name}", f"backbone.name={theirs}"
        )
    kwargs = facts["kwargs"]
    for key in sorted({*kwargs, *cfg.kwargs}):
        if not _MAY_DIFFER.search(key) and kwargs.get(key) != cfg.kwargs.get(key):
            raise WeightsError(
                "backbone.kwargs",
                f"{key} is {cfg.kwargs.get(key)}, and {path} was trained with {kwargs.get(key)}",
                f"backbone.kwargs.{key}={kwargs[key]}" if key in kwargs else f"leave {key} out",
            )


def _complete(path: Path, facts: Mapping[str, Any], instead: Path | None) -> dict[str, Tensor]:
    """The backbone's tensors of an own checkpoint: what it holds, over the base where that is not everything."""
    held = _backbone_part(_read(path), own=True)
    base = base_of(path, facts, instead)
    if facts["holds"] == "all" or base is None:
        return held
    size, channels = facts["input"]["image_size"], len(facts["input"]["mean"])
    net = create_net(facts["backbone"], facts["kwargs"], size, seed=0, for_weights=True, channels=channels)
    cfg = BackboneConfig(
        name=facts["backbone"], weights=base.weights, kwargs=facts["kwargs"], preprocessing=AS_PRETRAINED
    )
    load_weights(net, cfg, base, instead=instead)
    whole = net.module.state_dict()
    if wrong := [name for name in held if name not in whole or whole[name].shape != held[name].shape]:
        raise WeightsError(
            str(path), f"{len(wrong)} of its tensors do not fit its base, e.g. {wrong[0]}", "run its job again"
        )
    return {**whole, **held}


def is_own(cfg: BackboneConfig) -> bool:
    """Whether ``cfg.weights`` is an earlier run."""
    path = locate(cfg.weights)
    return path is not None and checkpoint_facts(path) is not None


def starts_random(cfg: BackboneConfig) -> bool:
    """Whether no weights from elsewhere stand at the start of the chain that ``cfg.weights`` ends."""
    path = locate(cfg.weights)
    if path is None:
        return cfg.weights == "random"
    facts = checkpoint_facts(path)
    return facts is not None and facts["base"] is None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Stated here, the environment cannot change it: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD only moves torch's default.
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a state_dict")
    except Exception as error:
        raise WeightsError(
            str(path), f"cannot be read ({first_line(error)})", "give a .safetensors file or a plain state_dict"
        ) from None
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    return clean_state_dict({str(name): value for name, value in content.items() if isinstance(value, Tensor)})


def _backbone_part(state: dict[str, Tensor], own: bool) -> dict[str, Tensor]:
    """An own checkpoint holds ``backbone.net.*`` and ``head.*``; a timm checkpoint holds the bare names."""
    prefix = "backbone.net."
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return part if own or part else state
