"""What a run is called on disk and in the table. Without torch: a sweep is planned before torch is imported."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from tl_experiments.backbones.locate import locate, weights_digest
from tl_experiments.config.datasets import CsvFile, Dataset, HuggingFace, ImageFolder, Npz, TorchvisionSet
from tl_experiments.config.heads import Head
from tl_experiments.config.schema import TrainConfig
from tl_experiments.records import NOT_IN_THE_RESULT
from tl_experiments.strategies.plans import Strategy
from tl_experiments.user_paths import expanded


def job_id(config: TrainConfig) -> str:
    """12 hex digits that change with everything in the config, and in its weights file, that changes the result.

    Two ways to say the same, such as a learning rate given and the same one by rule, are the same job.
    """
    content = dataclasses.asdict(config)
    for key in NOT_IN_THE_RESULT:
        group, _, leaf = key.rpartition(".")
        (content[group] if group else content).pop(leaf, None)  # feature_cache=off has no hold_max_bytes
    augmented = config.augmentation.name != "none"
    content["feature_cache"] = {
        "views": config.feature_cache.views if augmented else None,
        "dtype": config.feature_cache.dtype,
    }
    if config.head.is_solved:  # nothing is trained in steps
        content |= {"optimizer": None, "scheduler": None, "objective": None}
        content["trainer"] = {key: content["trainer"][key] for key in ("accelerator", "precision", "memory_format")}
    else:
        content["optimizer"] |= {"lr": config.base_lr(), "lr_factor": None}
    if config.trainer.name != "default":  # how processes are spread over nodes changes nothing
        content["trainer"] |= {"devices": config.trainer.world_size, "num_nodes": 1}
    content["backbone"]["weights"] = weights_digest(config.backbone.weights)
    content["freeze_strategy"]["base_lr"] = None  # it is in the rate
    dataset = content["dataset"]
    dataset["subset_seed"] = config.dataset.labels_seed(config.seed)
    dataset["tests"] = {name: _real(path) for name, path in config.dataset.test_sets.items()}
    dataset |= _place(config.dataset)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _place(dataset: Dataset) -> dict[str, str]:
    """Where the data is: two ways to the same place are the same job."""
    match dataset:
        case ImageFolder():
            return {"root": _real(dataset.root or "")}
        case CsvFile():
            table = dataset.path or ""
            return {
                "path": _real(table),
                "root": _real(os.path.dirname(table) if dataset.root is None else dataset.root),
            }
        case Npz():
            return {"path": _real(dataset.path or "")}
        case TorchvisionSet():
            return {"root": _real(dataset.root)}
        case HuggingFace(repo=str(repo)) if os.path.isdir(_real(repo)):
            return {"repo": _real(repo)}
        case _:
            return {}


def _real(path: str) -> str:
    return os.path.realpath(expanded(path))


def runs_folder(config: TrainConfig) -> Path:
    """``output_dir``, or a folder in it for runs that are no results."""
    return Path(config.output_dir, "debug") if config.debug.no_result else Path(config.output_dir)


def arm(config: TrainConfig) -> dict[str, str]:
    """What is compared: dataset, backbone, head and freeze strategy, each as a short text."""
    return {
        "dataset": dataset_label(config.dataset),
        "backbone": _backbone(config),
        "head": _with_options(config.head),
        "freeze_strategy": _with_options(config.freeze_strategy),
    }


def dataset_label(dataset: Dataset) -> str:
    """Its name, and what of it is used."""
    name: str = dataset.name
    match dataset:
        case ImageFolder():
            name = Path(dataset.root or "").name
        case CsvFile() | Npz():
            name = Path(dataset.path or "").stem
        case HuggingFace(repo=str(repo)):
            name = Path(repo).name if os.path.isdir(_real(repo)) else repo
            name += f" ({dataset.config_name})" if dataset.config_name else ""
    if dataset.channels != 3:
        name += f" ({dataset.channels} channel{'s' if dataset.channels > 1 else ''})"
    if dataset.folds is not None:
        name += f", {dataset.folds} folds"
    if dataset.shots is not None:
        return f"{name}, {dataset.shots} shots"
    if dataset.label_fraction is not None:
        return f"{name}, {dataset.label_fraction:.4g} of the labels"
    return name


def _backbone(config: TrainConfig) -> str:
    """The model's name, and where its weights came from unless they are timm's own or none are meant to be there."""
    name, weights = config.backbone.name, config.backbone.weights
    if weights == "pretrained" or config.freeze_strategy.reinitialize_backbone:
        return name
    path = locate(weights)
    if path is None:
        return f"{name} ({weights})"
    run_of = path.parent.parent.name  # outputs/<sweep>/<job>/checkpoint.safetensors
    return f"{name} ({run_of if path.stem == 'checkpoint' else path.stem})"


def _with_options(choice: Head | Strategy) -> str:
    """Its name and, in brackets, the options that tell its arms apart: those without a default, or away from it."""
    options = []
    for field in dataclasses.fields(choice):
        value = getattr(choice, field.name)
        if field.name not in ("name", "base_lr") and (field.default is dataclasses.MISSING or value != field.default):
            options.append(f"{field.name}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}")
    return f"{choice.name}({', '.join(options)})" if options else choice.name
