"""From a folder to a model ready to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_experiments.backbones.timm_backbone import InputSpec
from tl_experiments.config.schema import TrainConfig
from tl_experiments.config.typed import typed
from tl_experiments.errors import ConfigError, WeightsError
from tl_experiments.inference.folders import check_run, is_export, is_run, with_weights_option
from tl_experiments.inference.loaded import LoadedModel
from tl_experiments.records import SWEEP_FILE, RunRecord
from tl_experiments.training.checkpoint import load_run
from tl_experiments.training.environment import autocast
from tl_experiments.training.groups import why_alone
from tl_experiments.training.model import TransferModel

DEVICES = ("auto", "cpu", "cuda")


def load_model(folder: Path | str, device: str = "auto", weights: Path | str | None = None) -> LoadedModel:
    """The model of a finished run, of the run of a sweep that val chose, or what ``tl export`` made of one.

    Args:
        folder: Of the run, of the sweep, or of the export.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one. An ONNX file runs on the CPU.
        weights: The file that the run started from, where it is elsewhere now.

    Raises:
        UserError: There is no model in the folder, it is damaged, or the base that it needs is gone or another.
    """
    folder, where = Path(folder), _device(device)
    if is_export(folder):
        from tl_experiments.inference.exported import load_exported

        return load_exported(folder, where)
    if not is_run(folder) and (folder / SWEEP_FILE).is_file():
        from tl_experiments.analysis.winner import winner

        found = winner(folder)
        loaded = load_model(found.folder, device, weights)
        return replace(loaded, notes=(f"Of {folder}, {found.folder.name}: {found.reason}.", *loaded.notes))
    base = None if weights is None else Path(weights)
    record, facts = check_run(folder, base)
    model = restore(folder, facts, base)
    precision, head_in_float, notes = _as_tested(record, where)
    logits = on_device(model, where, precision, head_in_float)
    max_pixels = record.config["dataset"]["max_pixels"]
    return LoadedModel(tuple(facts["classes"]), InputSpec.stored(facts["input"]), logits, notes, max_pixels)


def restore(folder: Path, facts: Mapping[str, Any], weights: Path | None) -> TransferModel:
    """The run's model on the CPU in eval mode.

    Raises:
        WeightsError: The base that it needs cannot be had.
    """
    try:
        return load_run(folder, weights)
    except WeightsError as error:
        raise with_weights_option(error, facts) from None


def on_device(
    model: TransferModel, device: torch.device, precision: str = "32-true", head_in_float: bool = True
) -> Callable[[Tensor], Tensor]:
    """``LoadedModel.logits`` of a model.

    Args:
        model: In eval mode; it is moved.
        device: Where it computes.
        precision: Of the backbone, in Lightning's words.
        head_in_float: Whether the head computes in 32 bits all the same, as heads on kept features do.
    """
    model.to(device)
    accelerator = "gpu" if device.type == "cuda" else "cpu"

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        images = images.to(device)
        with autocast(accelerator, precision):
            if not head_in_float:
                return model(images).float().cpu()
            features = model.features(images)
        return model.head(features.float()).cpu()

    return logits


def _device(name: str) -> torch.device:
    if name not in DEVICES:
        raise ConfigError("--device", f"got {name!r}, expected one of {', '.join(DEVICES)}", "leave it out for auto")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("--device", "cuda, but torch sees no CUDA device", "--device auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _as_tested(record: RunRecord, device: torch.device) -> tuple[str, bool, tuple[str, ...]]:
    """``precision`` and ``head_in_float`` of the run's test, and what to say where this machine has no such."""
    precision = record.config["trainer"]["precision"]
    if precision == "auto":
        precision = "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    if precision == "32-true":
        return precision, True, ()
    if precision == "16-mixed" and device.type == "cpu":
        return "32-true", True, ("The run was tested in 16-mixed; the CPU computes in 32 bits.",)
    return precision, why_alone(typed(TrainConfig, record.config)) is None, ()
