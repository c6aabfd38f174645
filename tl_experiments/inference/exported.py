"""A folder that ``tl export`` wrote, as a model ready to predict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tl_experiments.backbones.locate import file_sha256
from tl_experiments.backbones.timm_backbone import InputSpec
from tl_experiments.data.decode import MAX_PIXELS
from tl_experiments.errors import WeightsError, first_line
from tl_experiments.inference.description import FILES, FORMAT_VERSION
from tl_experiments.inference.folders import EXPORT_FILE
from tl_experiments.inference.loaded import LoadedModel
from tl_experiments.inference.loading import on_device
from tl_experiments.inference.onnx_file import missing_extra, missing_packages, onnx_logits
from tl_experiments.training.checkpoint import load_whole
from tl_experiments.training.model import TransferModel


def load_exported(folder: Path, device: torch.device) -> LoadedModel:
    """The ONNX file where there is one and onnxruntime is installed, else the safetensors file.

    A ``.pt2`` file is never read: reading one can run what is in it.

    Args:
        folder: With ``model.json``.
        device: For safetensors; onnxruntime computes on the CPU.

    Raises:
        WeightsError: ``model.json`` cannot be used, or its file is damaged.
        ConfigError: There is only an ONNX file, and no onnxruntime.
    """
    about = _read(folder / EXPORT_FILE)
    files, lacking = about["files"], missing_packages(("onnxruntime",))
    usable = [name for name in ("onnx", "safetensors") if name in files and not (name == "onnx" and lacking)]
    if not usable:
        if "onnx" in files:
            raise missing_extra(lacking)
        raise WeightsError(str(folder), "no ONNX or safetensors file", "tl export RUN --format onnx safetensors")
    path = folder / FILES[usable[0]]
    if not path.is_file() or file_sha256(path) != files[usable[0]]["sha256"]:
        raise WeightsError(str(path), f"not the file that {EXPORT_FILE} describes (sha256)", "export it again")
    logits = onnx_logits(path) if usable[0] == "onnx" else on_device(whole_model(about, path.read_bytes()), device)
    max_pixels = about.get("max_pixels", MAX_PIXELS)  # exports of older versions do not say
    return LoadedModel(tuple(about["classes"]), InputSpec.stored(about["input"]), logits, max_pixels=max_pixels)


def whole_model(about: Mapping[str, Any], data: bytes) -> TransferModel:
    """The model of a safetensors file that holds every tensor, on the CPU in eval mode.

    Args:
        about: From ``description``.
        data: The file's content.
    """
    return load_whole(about, data, starts_random=about["starts_random"])


def _read(path: Path) -> dict[str, Any]:
    fix = "export the run again"
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = about["format_version"]
        missing = {"classes", "input", "files", "backbone", "kwargs", "head", "memory_format", "starts_random"} - set(
            about
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(str(path), f"not readable ({first_line(error)})", fix) from None
    if version != FORMAT_VERSION:
        raise WeightsError(str(path), f"format version {version}, expected {FORMAT_VERSION}", fix)
    if missing:
        raise WeightsError(str(path), f"says nothing of {', '.join(sorted(missing))}", fix)
    return about
