"""A training step with channels_last against one with contiguous tensors, which is the reason for the default.

    python benchmarks/memory_format.py            # writes benchmarks/results/memory_format.json

Both layouts take turns in one process on one thread; on a CPU the figure is the thread's own time, which other
processes do not count into. A contiguous step against itself stands beside each ratio: its spread is the noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import timm
import torch

RESULTS = Path(__file__).parent / "results" / "memory_format.json"
NETS = {
    "mobilenetv2_100": 96,
    "efficientnet_b0": 96,
    "resnet18": 96,
    "convnext_atto": 96,
    "vit_tiny_patch16_224": 224,
}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "again": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def step(name: str, size: int, layout: torch.memory_format, device: torch.device) -> Callable[[], None]:
    """Forward and backward of a batch of 32."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).to(device, memory_format=layout).train()
    image = torch.randn(32, 3, size, size, device=device)
    mixed = device.type == "cuda"

    def run() -> None:
        net.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = net(image.contiguous(memory_format=layout)).float().square().mean()
        loss.backward()

    return run


def seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        started = time.thread_time()
        call()
        return time.thread_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    for name, size in NETS.items():
        calls = {key: step(name, size, layout, device) for key, layout in FORMATS.items()}
        times: dict[str, list[float]] = {key: [] for key in FORMATS}
        for number in range(repeats + 1):
            for key, call in calls.items():
                taken = seconds(call, device)
                if number:
                    times[key].append(taken)
        medians = {key: statistics.median(each) for key, each in times.items()}
        results[name] = {
            "image_size": size,
            "contiguous_s": medians["contiguous"],
            "channels_last_s": medians["channels_last"],
            "speed_up": medians["contiguous"] / medians["channels_last"],
            "contiguous_against_itself": medians["contiguous"] / medians["again"],
        }
    content = {
        "command": "python benchmarks/memory_format.py",
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "device": _device_name(device),
            "threads": 1,
        },
        "precision": "bf16-mixed" if device.type == "cuda" else "32-true",
        "versions": {package: version(package) for package in ("timm", "torch")},
        "results": results,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
