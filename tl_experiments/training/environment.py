"""The device a run uses, and the account of the machine that it leaves in the record."""

from __future__ import annotations

import platform
import resource
import sys
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tl_experiments.config.trainers import TrainerConfig
from tl_experiments.errors import ConfigError

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "numpy",
    "tl-experiments",
)


def choose_accelerator(cfg: TrainerConfig) -> str:
    """``gpu`` or ``cpu``.

    Raises:
        ConfigError: A GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if cfg.accelerator == "gpu" and not available:
        raise ConfigError("trainer.accelerator", "gpu, but torch sees no CUDA device", "trainer.accelerator=auto")
    return "gpu" if available and cfg.accelerator != "cpu" else "cpu"


def choose_precision(cfg: TrainerConfig, accelerator: str) -> str:
    """The precision asked for; ``auto`` is bf16-mixed on a GPU that has it and 32-true elsewhere.

    Raises:
        ConfigError: 16-mixed without a GPU.
    """
    if cfg.precision == "16-mixed" and accelerator != "gpu":
        raise ConfigError("trainer.precision", "16-mixed on a CPU, which needs a GPU", "trainer.precision=auto")
    if cfg.precision != "auto":
        return cfg.precision
    return "bf16-mixed" if accelerator == "gpu" and torch.cuda.is_bf16_supported() else "32-true"


def device_of(accelerator: str) -> torch.device:
    """torch's name for it."""
    return torch.device("cuda" if accelerator == "gpu" else "cpu")


def autocast(accelerator: str, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass has the precision, as Lightning's own is."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device_of(accelerator).type, dtype, enabled=dtype is not None)


def device_name(accelerator: str) -> str:
    """The GPU's name, or the processor's with the number of threads."""
    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def environment(accelerator: str, precision: str, devices: int = 1) -> dict[str, Any]:
    """Versions, processor, device and how many of it train together, precision and threads."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device_name(accelerator),
        "devices": devices,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "packages": dict(_versions()),
    }


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in _PACKAGES)


def peak_memory_bytes(accelerator: str) -> int:
    """Peak of allocated device memory on a GPU, of resident process memory on a CPU."""
    if accelerator == "gpu":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
