"""A step of 64 linear heads in one computation against 64 heads of torch; and of one head against a bare loop.

    python benchmarks/fused_heads.py            # writes benchmarks/results/fused_heads.json

The heads of torch stand in a ModuleDict, each with a rate of its own in one fused AdamW, as DINOv2 evaluates features.
Features are in memory and no backbone runs. Both sides take turns in one process; with one thread the figure is the
thread's own time, which other processes do not count into, with more it is time on the wall. A step against itself
stands beside each ratio: its spread is the noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from measure import Report, Row, arguments, fix_threads, ratios, same_side_noise, spread
from tl_experiments.probes.stack import ProbeStack
from tl_experiments.probes.updates import AdamW

DIM, CLASSES = 512, 10
TARGETS = {(64, 256): 2.5, (64, 32): 5.0, (1, 256): 1 / 1.3, (1, 32): 1 / 1.3}


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


def measure(n_heads: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step of each side, the repeats in turns."""
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
    return times


def main() -> None:
    given = arguments(__doc__, repeats=9).parse_args()
    fix_threads()
    torch.set_num_threads(1)
    report = Report("fused_heads", given.short)
    for (n_heads, batch_size), target in TARGETS.items():
        times = measure(n_heads, batch_size, 5 if given.short else given.repeats)
        name = f"{n_heads} heads" if n_heads > 1 else "1 head"
        report.details[f"{name}, batch {batch_size}"] = times
        report.add(
            Row(
                bar="b3" if n_heads > 1 else "c2",
                what=f"{name} of a ModuleDict with fused AdamW, batch {batch_size}" if n_heads > 1 else "a bare loop",
                peer="one stack of heads" if n_heads > 1 else f"a stack of one head, batch {batch_size}",
                **spread(ratios(times["separate"], times["together"])),
                sense=">=",
                target=target,
                limit="the same products of matrices: what is saved are calls",
                noise=same_side_noise(times["together"], times["again"]),
                remark="512 features, 10 classes, heads only, one thread",
            )
        )
    report.write()


if __name__ == "__main__":
    main()
