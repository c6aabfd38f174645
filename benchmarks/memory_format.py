"""A training step with channels_last against one with contiguous tensors, which is the reason for the default.

    python benchmarks/memory_format.py    # about 3 minutes

Both layouts take turns in one process on one thread; on a CPU the figure is the thread's own time, which other
processes do not count into. A contiguous step against itself stands beside each ratio: its spread is the noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import timm
import torch

from measure import Report, Row, alternate, arguments, ratios, same_side_noise, spread

NETS = {
    "mobilenetv2_100": 96,
    "efficientnet_b0": 96,
    "resnet18": 96,
    "convnext_atto": 96,
    "vit_tiny_patch16_224": 224,
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


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
    given = arguments(__doc__, repeats=7).parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report("memory_format", given.short)
    report.details["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    for name, size in NETS.items():
        sides = {key: partial(seconds, step(name, size, layout, device), device) for key, layout in FORMATS.items()}
        times = alternate(sides, 3 if given.short else given.repeats, warm_up=True, again="contiguous")
        report.details[name] = times
        report.add(
            Row(
                bar="",
                what=f"training step of {name} at {size} px: contiguous",
                peer="channels_last",
                **spread(ratios(times["contiguous"], times["channels_last"])),
                sense=">=",
                target=None,
                noise=same_side_noise(times["contiguous"], times["again"]),
                remark="batch of 32, " + ("bf16-mixed" if device.type == "cuda" else "32-true, one thread's own time"),
            )
        )
    report.write()


if __name__ == "__main__":
    main()
