"""A run's weights: what its checkpoint holds, and the run's model from it, as it was tested."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.locate import CHECKPOINT_FILE, Base, checkpoint_facts, locate
from tl_experiments.backbones.nets import input_channels
from tl_experiments.backbones.timm_backbone import TimmBackbone, blank_backbone, restore_backbone
from tl_experiments.config.heads import Head
from tl_experiments.config.schema import TrainConfig
from tl_experiments.config.typed import typed
from tl_experiments.errors import WeightsError, first_line
from tl_experiments.heads import build_head
from tl_experiments.records import write_atomically
from tl_experiments.training.audit import live_statistics
from tl_experiments.training.build import Parts
from tl_experiments.training.identity import arm
from tl_experiments.training.model import TransferModel


def write_checkpoint(
    folder: Path, cfg: TrainConfig, identity: str, parts: Parts, state: Mapping[str, Tensor]
) -> Path | None:
    """Write ``checkpoint.safetensors``, and beside it ``checkpoint.json``, which names the base and the file's sha256.

    With ``trainer.checkpoint=trained`` the file holds the head and what the plan lets move; the rest is the base's,
    to the bit, which the audit has seen. A run from random weights has no base and stores everything.

    Args:
        folder: Of the run.
        cfg: Likewise.
        identity: Of the job.
        parts: Of the run.
        state: Of the model, with the weights that were chosen.

    Returns:
        The file; None with ``trainer.checkpoint=none``.
    """
    path = folder / CHECKPOINT_FILE
    if cfg.trainer.checkpoint == "none":
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        return None
    base = _base(folder, cfg, parts)
    whole = cfg.trainer.checkpoint == "all" or base is None
    moved = _may_have_moved(parts)
    kept = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if whole or name in moved or name.startswith("head.")
    }
    # The base's hash inside the file makes the file's hash stand for the whole model.
    data = save(_without_sharing(kept), {"base_sha256": base.sha256} if base is not None and not whole else None)
    write_atomically(path, data, sync_folder=False)  # the record, which follows, syncs the folder
    facts = {
        "backbone": cfg.backbone.name,
        "kwargs": {**cfg.backbone.kwargs, **_channels(parts)},
        "input": dataclasses.asdict(parts.model.backbone.input_spec),
        "head": dataclasses.asdict(cfg.head),
        "memory_format": cfg.trainer.memory_format,
        "classes": parts.data.spec.classes,
        "freeze_strategy": arm(cfg)["freeze_strategy"],
        "job_id": identity,
        "holds": "all" if whole else "trained",
        "base": None if base is None else dataclasses.asdict(base),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    write_atomically(path.with_suffix(".json"), text + "\n", sync_folder=False)
    return path


def load_run(folder: Path | str, weights: Path | None = None) -> TransferModel:
    """The model of a finished run, backbone and head, in eval mode: on the same images it gives the run's logits.

    To train on from a run, give its folder as ``backbone.weights`` instead: that takes the backbone alone, and the new
    run gets a new head even where the classes are the same, so that all arms of a comparison start equal.

    Args:
        folder: Of a run, or of a sweep with exactly one.
        weights: The file that the run started from, where it is elsewhere now; its hash is checked.

    Raises:
        WeightsError: No checkpoint, a damaged one, or one whose base is gone or another.
    """
    path = locate(str(folder))
    facts = checkpoint_facts(path) if path is not None else None
    if path is None or facts is None:
        raise WeightsError(str(folder), "no checkpoint of a run", "name the folder of a finished run")
    if missing := {"head", "classes", "memory_format"} - facts.keys():
        what = f"says nothing of {', '.join(sorted(missing))}"
        raise WeightsError(str(path.with_suffix(".json")), what, "another version wrote it: run its job again")
    cfg = typed(_WithHead, {"head": facts["head"]}).head
    model = _on(restore_backbone(path, facts, tokens=cfg.reads_tokens, instead=weights), cfg, facts)
    state = load_file(path)
    model.head.load_state_dict({name.removeprefix("head."): t for name, t in state.items() if name.startswith("head.")})
    return model


def whole_checkpoint(model: TransferModel) -> bytes:
    """A safetensors file with every tensor of a model: it needs no base."""
    return save(_without_sharing({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}))


def load_whole(facts: Mapping[str, Any], data: bytes, *, starts_random: bool) -> TransferModel:
    """The model of a file that ``whole_checkpoint`` made, in eval mode.

    Args:
        facts: ``backbone``, ``kwargs``, ``input``, ``head``, ``classes`` and ``memory_format``, as beside a checkpoint.
        data: The file's content.
        starts_random: Whether no weights from elsewhere stood at the start of its run.

    Raises:
        WeightsError: Its tensors are not those of such a model.
    """
    cfg = typed(_WithHead, {"head": facts["head"]}).head
    model = _on(blank_backbone(facts, starts_random=starts_random, tokens=cfg.reads_tokens), cfg, facts)
    try:
        model.load_state_dict(load(data))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(
            "safetensors", f"not the tensors of {facts['backbone']} ({first_line(error)})", "export it again"
        ) from None
    return model


def _on(backbone: TimmBackbone, cfg: Head, facts: Mapping[str, Any]) -> TransferModel:
    head = build_head(cfg, backbone.feature_dim, len(facts["classes"]), 0)
    return TransferModel(backbone, head, layout_of(backbone, head), facts["memory_format"]).eval()


@dataclass(frozen=True)
class _WithHead:
    head: Head


def _base(folder: Path, cfg: TrainConfig, parts: Parts) -> Base | None:
    weights = parts.weights
    if weights.sha256 is None:
        return None
    path = locate(cfg.backbone.weights)
    if path is None:
        return Base(
            weights="pretrained", beside=None, source=weights.source, commit=weights.commit, sha256=weights.sha256
        )
    absolute = path.absolute()
    return Base(
        weights=str(absolute),
        beside=os.path.relpath(absolute, folder.absolute()),
        source=weights.source,
        commit=None,
        sha256=weights.sha256,
    )


def _may_have_moved(parts: Parts) -> set[str]:
    """Parameters that any phase trains, and statistics that it lets move."""
    moved: set[str] = set()
    for steps in parts.phases:
        moved |= set(steps.phase.lr_multiplier) | live_statistics(parts.model, parts.model.layout, steps.phase)
    return moved


def _channels(parts: Parts) -> Mapping[str, Any]:
    channels = input_channels(parts.model.backbone.net)
    return {} if channels == 3 else {"in_chans": channels}


def _without_sharing(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors refuses tensors that share memory, as tied weights do: each gets its own."""
    seen: set[int] = set()
    own = {}
    for name, tensor in state.items():
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return own
