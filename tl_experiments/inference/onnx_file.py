"""ONNX: a traced model to a file's bytes, and a file to a function. Needs the extra ``onnx``."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tl_experiments.errors import ConfigError
from tl_experiments.inference.graph import INPUT, OUTPUT

OPSET = 20
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def missing_packages(needed: tuple[str, ...] = PACKAGES) -> list[str]:
    """Those of the extra that are not installed."""
    return [name for name in needed if importlib.util.find_spec(name) is None]


def missing_extra(packages: list[str]) -> ConfigError:
    """The error for packages that are not there."""
    return ConfigError("onnx", f"{', '.join(packages)} not installed", "pip install 'tl-experiments[onnx]'")


def onnx_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """An ONNX file with one input, ``image``, and one output, ``logits``; the number of images is free.

    Args:
        program: From ``graph.trace``.
        metadata: Becomes the file's ``metadata_props``.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert exported is not None
    proto = exported.model_proto
    onnx.helper.set_model_props(proto, dict(metadata))
    return proto.SerializeToString()


def onnx_logits(file: Path | bytes) -> Callable[[Tensor], Tensor]:
    """``LoadedModel.logits`` of an ONNX file, on the CPU by onnxruntime with torch's number of threads.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    if lacking := missing_packages(("onnxruntime",)):
        raise missing_extra(lacking)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return logits
