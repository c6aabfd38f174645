"""A run's model as files for other programs, each checked against the model before it is called done."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_experiments.config.datasets import Dataset
from tl_experiments.config.typed import typed
from tl_experiments.data.location import located
from tl_experiments.data.sources import divide, open_source
from tl_experiments.errors import UserError, first_line
from tl_experiments.inference.description import FILES, description
from tl_experiments.inference.exported import whole_model
from tl_experiments.inference.folders import EXPORT_FILE, EXPORT_FOLDER, check_run
from tl_experiments.inference.graph import trace
from tl_experiments.inference.loaded import LoadedModel
from tl_experiments.inference.loading import on_device, restore
from tl_experiments.inference.onnx_file import missing_extra, missing_packages, onnx_bytes, onnx_logits
from tl_experiments.records import RunRecord, remove_stale_temporaries, write_atomically
from tl_experiments.training.checkpoint import whole_checkpoint
from tl_experiments.training.model import TransferModel

CHECKED_IMAGES = 64
TOLERANCE = 1e-4  # of a probability

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: With ``model.json`` and the files that it names.
        checks: Format -> what its check saw, of those written now.
        failed: Format -> why it could not be written.
        notes: What the user should know, in whole sentences.
    """

    folder: Path
    checks: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    notes: tuple[str, ...]


def export(folder: Path, formats: Sequence[str] | None = None, weights: Path | None = None) -> Exported:
    """Write ``<run>/export/``: the model in each format, and ``model.json``, which says what it is and how to load it.

    Every file takes uint8 images that are resized and cropped already, and gives logits: mean and standard deviation
    are inside. It is compared with the model on 64 test images of the run: the same most probable class and
    probabilities that differ by no more than 1e-4, or it is not written. Files of other formats from an earlier export
    of the same checkpoint stay.

    Args:
        folder: Of the run.
        formats: Of ``FILES``; null is all that are installed.
        weights: The file that the run started from, where it is elsewhere now.

    Raises:
        UserError: The run's model cannot be loaded, or a format was asked for whose packages are not installed.
    """
    record, facts = check_run(folder, weights)
    lacking, notes = missing_packages(), []
    if lacking and "onnx" in (formats or ()):
        raise missing_extra(lacking)
    if formats is None:
        formats = [name for name in FILES if name != "onnx" or not lacking]
        if lacking:
            notes.append(f"No ONNX file: {missing_extra(lacking)}.")
    model = restore(folder, facts, weights)
    loaded = LoadedModel(tuple(facts["classes"]), model.backbone.input_spec, on_device(model, torch.device("cpu")))
    images, note = _images(record, loaded)
    notes += [note] if note else []
    about = description(record, facts, model)
    target = folder / EXPORT_FOLDER
    files, checks, failed = _kept(target, about), {}, {}
    remove_stale_temporaries(target)
    for name in formats:
        try:
            data, again = _MAKERS[name](model, about)
            checks[name] = _compare(again(images), loaded.logits(images))
        except UserError as error:
            failed[name] = str(error)
        except Exception as error:  # tracing fails in as many ways as there are models
            failed[name] = first_line(error)
        if name in failed:
            files.pop(name, None)
            (target / FILES[name]).unlink(missing_ok=True)
            continue
        write_atomically(target / FILES[name], data)
        files[name] = {
            "file": FILES[name],
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "checked": {"images": "noise" if note else "test images of the run", **checks[name]},
        }
    text = json.dumps({**about, "files": files}, indent=2, ensure_ascii=False)
    write_atomically(target / EXPORT_FILE, text + "\n")
    return Exported(target, checks, failed, tuple(notes))


def _safetensors(model: TransferModel, about: Mapping[str, Any]) -> tuple[bytes, Logits]:
    data = whole_checkpoint(model)
    return data, on_device(whole_model(about, data), torch.device("cpu"))


def _torch_export(model: TransferModel, _about: Mapping[str, Any]) -> tuple[bytes, Logits]:
    program, stream = trace(model), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scalars, which it takes for parts of something larger
        torch.export.save(program, stream)
    # The program itself, not the file: reading one runs what is in it
    return stream.getvalue(), torch.no_grad()(program.module())


def _onnx(model: TransferModel, about: Mapping[str, Any]) -> tuple[bytes, Logits]:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    data = onnx_bytes(trace(model), texts)
    return data, onnx_logits(data)


_MAKERS: Mapping[str, Callable[[TransferModel, Mapping[str, Any]], tuple[bytes, Logits]]] = {
    "safetensors": _safetensors,
    "torch_export": _torch_export,
    "onnx": _onnx,
}


def _compare(outputs: Tensor, expected: Tensor) -> dict[str, Any]:
    """How far an export is from its model.

    Raises:
        UserError: Too far to be called the same.
    """
    theirs, ours = outputs.double().softmax(1), expected.double().softmax(1)
    difference = float((theirs - ours).abs().max())
    other = int((theirs.argmax(1) != ours.argmax(1)).sum())
    if other or not difference <= TOLERANCE:
        what = f"another class on {other} of {len(ours)} images, probabilities differ by up to {difference:.2g}"
        raise UserError("check", f"{what}, at most {TOLERANCE:g} expected", "use another format")
    return {
        "compared": len(ours),
        "max_probability_difference": difference,
        "max_logit_difference": float((outputs - expected).abs().max()),
    }


def _images(record: RunRecord, model: LoadedModel) -> tuple[Tensor, str | None]:
    """Test images of the run, ``(n, channels, size, size)``; where these cannot be had, noise and a note."""
    try:
        dataset = typed(_WithDataset, {"dataset": located(record.config, record.data)["dataset"]}).dataset
        source = open_source(dataset)
        items = divide(source, dataset, record.seed).used.indices["test"]
        chosen = np.unique(np.linspace(0, len(items) - 1, CHECKED_IMAGES).round().astype(int))
        return torch.stack([model.prepare(source.load(int(item))) for item in items[chosen]]), None
    except UserError as error:  # the dataset is elsewhere now, or an image of it was damaged since
        spec = model.preprocessing
        shape = (CHECKED_IMAGES, spec.channels, spec.image_size, spec.image_size)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return noise, f"Checked on noise, since the run's images cannot be read ({error})."


@dataclasses.dataclass(frozen=True)
class _WithDataset:
    dataset: Dataset


def _kept(target: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Files of an earlier export of the same checkpoint."""
    try:
        old = json.loads((target / EXPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = old.get("checkpoint_sha256") == about["checkpoint_sha256"]
    return {name: one for name, one in old.get("files", {}).items() if same and (target / FILES[name]).is_file()}
