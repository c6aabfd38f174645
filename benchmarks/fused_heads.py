"""A step of 64 linear heads in one computation against 64 heads of torch; and of one head against a bare loop.

    python benchmarks/fused_heads.py            # writes benchmarks/results/fused_heads.json

The heads of torch stand in a ModuleDict, each with a rate of its own in one fused AdamW, as DINOv2 evaluates features.
Features are in memory and no backbone runs. Both sides take turns in one process; with one thread the figure is the
thread's own time, which other processes do not count into, with more it is time on the wall. A step against itself
stands beside each ratio: its spread is the noise.
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

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_experiments.probes.stack import ProbeStack
from tl_experiments.probes.updates import AdamW

RESULTS = Path(__file__).parent / "results" / "fused_heads.json"
DIM, CLASSES = 512, 10
BARS = {(64, 256): 2.5, (64, 32): 5.0, (1, 256): 1 / 1.3, (1, 32): 1 / 1.3}


def rates(n_heads: int) -> Tensor:
    return torch.logspace(-5, -2, n_heads)


def together(n_heads: int, features: Tensor, labels: Tensor) -> Callable[[], object]:
    stack = ProbeStack(
        0.01 * torch.randn(n_heads, CLASSES, DIM),
        torch.zeros(n_heads, CLASSES),
        AdamW(),
        weight_decay=[0.01] * n_heads,
        label_smoothing=[0.0] * n_heads,
        clip_norm=[None] * n_heads,
    )
    lr = rates(n_heads)
    return lambda: stack.step(features, labels, lr)


def separate(n_heads: int, features: Tensor, labels: Tensor) -> Callable[[], object]:
    heads = nn.ModuleDict({str(number): nn.Linear(DIM, CLASSES) for number in range(n_heads)})
    lr = rates(n_heads).tolist()
    groups = [{"params": head.parameters(), "lr": lr[number]} for number, head in enumerate(heads.values())]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)

    def step() -> None:
        outputs = {name: head(features) for name, head in heads.items()}
        losses = {name: functional.cross_entropy(output, labels) for name, output in outputs.items()}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def seconds(call: Callable[[], object], steps: int) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for _ in range(steps):
        call()
    return (clock() - started) / steps


def measure(n_heads: int, batch_size: int, threads: int, repeats: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    features, labels = torch.randn(batch_size, DIM), torch.randint(0, CLASSES, (batch_size,))
    calls = {
        "together": together(n_heads, features, labels),
        "again": together(n_heads, features, labels),
        "separate": separate(n_heads, features, labels),
    }
    times: dict[str, list[float]] = {key: [] for key in calls}
    for number in range(repeats + 1):
        for key, call in calls.items():
            taken = seconds(call, 1600 // (n_heads + 16))
            if number:
                times[key].append(taken)
    medians = {key: statistics.median(each) for key, each in times.items()}
    return {
        "heads": n_heads,
        "batch_size": batch_size,
        "threads": threads,
        "together_s": medians["together"],
        "separate_s": medians["separate"],
        "speed_up": medians["separate"] / medians["together"],
        "speed_up_lowest": min(a / b for a, b in zip(times["separate"], times["together"], strict=True)),
        "limit": BARS[n_heads, batch_size],
        "together_against_itself": medians["together"] / medians["again"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="more than 1 needs a machine without load")
    args = parser.parse_args()
    results = [measure(*case, threads, args.repeats) for threads in args.threads for case in BARS]
    content = {
        "command": "python benchmarks/fused_heads.py",
        "machine": {"system": f"{platform.system()} {platform.machine()}", "device": _processor()},
        "versions": {"torch": version("torch")},
        "results": results,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
