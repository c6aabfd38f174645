"""``model.json``: what an exported model is, what it takes and gives, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tl_experiments.inference.graph import INPUT, OUTPUT
from tl_experiments.records import RunRecord
from tl_experiments.training.model import TransferModel

FORMAT_VERSION = 1
FILES = {"safetensors": "model.safetensors", "torch_export": "model.pt2", "onnx": "model.onnx"}
HOW_TO_LOAD = {
    "safetensors": "tl_experiments.load_model(<this folder>); the tensors backbone.net.* are those of timm's model",
    "torch_export": "torch.export.load('model.pt2').module()(image); load files of this kind only from yourself",
    "onnx": "onnxruntime.InferenceSession('model.onnx').run(['logits'], {'image': image})",
}
_COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}


def description(record: RunRecord, facts: Mapping[str, Any], model: TransferModel) -> dict[str, Any]:
    """Everything about an exported model but its files.

    Args:
        record: Of the run.
        facts: What stands beside its checkpoint.
        model: The run's.
    """
    spec = model.backbone.input_spec
    weights = record.weights
    return {
        "format_version": FORMAT_VERSION,
        "job_id": record.job_id,
        "arm": dict(record.arm),
        "seed": record.seed,
        "classes": list(facts["classes"]),
        "preprocessing": {
            "colours": _COLOURS.get(spec.channels, f"{spec.channels} channels"),
            "resize_short_side": math.floor(spec.image_size / spec.crop_fraction),
            "interpolation": spec.interpolation,
            "center_crop": spec.image_size,
            "inside_the_model": {"divide_by": 255, "mean": list(spec.mean), "std": list(spec.std)},
        },
        "max_pixels": record.config["dataset"]["max_pixels"],
        "takes": {"name": INPUT, "dtype": "uint8", "shape": ["n", spec.channels, spec.image_size, spec.image_size]},
        "gives": {"name": OUTPUT, "dtype": "float32", "shape": ["n", len(facts["classes"])], "then": "softmax"},
        "weights": {
            "source": weights.get("source"),
            "sha256": weights.get("sha256"),
            "commit": weights.get("commit"),
            "licence": _licence(weights, model),
        },
        "metrics": {split: dict(values) for split, values in record.metrics.items()},
        "how_to_load": HOW_TO_LOAD,
        "checkpoint_sha256": facts["sha256"],
        **{key: facts[key] for key in ("backbone", "kwargs", "input", "head", "memory_format")},
        "starts_random": weights.get("source") == "random",
    }


def _licence(weights: Mapping[str, Any], model: TransferModel) -> str:
    """That of timm's weights, where these are at the start of the chain of runs."""
    lineage = weights.get("lineage") or [weights]
    pretrained = getattr(model.backbone.net, "pretrained_cfg", None) or {}
    repo, licence = pretrained.get("hf_hub_id"), pretrained.get("license")
    if weights.get("source") == "random" or lineage[0].get("source") == "random":
        return "trained from random weights"
    if repo and str(lineage[0].get("source")).startswith(str(repo).partition("@")[0]):
        return str(licence) if licence else f"not stated by timm: see {repo}"
    return "unknown: see where the weights come from"
