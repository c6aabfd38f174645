"""The figures of a GPU: a mix of three jobs, fused heads, encoding, and whether batches keep the device busy.

    TL_SHARED_DATA=... python benchmarks/gpu.py            # writes benchmarks/results/gpu.json

Refuses without a CUDA device. The mix is timed as commands, everything else in this process with the device's queue
empty before and after. Loader-bound: the seconds of an epoch with its batches, over those of the same steps on batches
that are there already; 1 is never waiting.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fused_heads import separate, together
from measure import Report, Row, alternate, arguments, ratios, same_side_noise, seconds, spread
from mix import SWEEP
from tl_experiments.config import compose
from tl_experiments.features.encoding import compiled, encoding_batch
from tl_experiments.features.split import split
from tl_experiments.training.build import build
from tl_experiments.training.caching import hold_bytes
from tl_experiments.training.environment import autocast
from work import Ours, Work, overrides, prepare

ON_GPU = ("trainer.accelerator=gpu", "trainer.precision=auto")
DEVICE = torch.device("cuda")
STEPS = 200


def main() -> None:
    given = arguments(__doc__).parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no CUDA device -> run it on a machine with a GPU")
    report = Report("gpu", given.short)
    report.details["device"] = {
        "name": torch.cuda.get_device_name(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
    }
    n, val, size, repeats = (128, 32, 96, 2) if given.short else (1000, 200, 224, given.repeats)
    heads(report, repeats)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        work = prepare(Path(folder), n, val, image_size=size)
        encoding(report, work, repeats)
        for augmentation in ("none", "flip_crop", "trivial"):
            loader(report, work, augmentation, repeats)
        mix(report, work, 2 if given.short else 10)
    report.write()


def finished(call: Callable[[], object]) -> Callable[[], float]:
    """Seconds until the device has nothing left to do."""

    def timed() -> float:
        torch.cuda.synchronize()
        return seconds(lambda: (call(), torch.cuda.synchronize()))

    return timed


def heads(report: Report, repeats: int) -> None:
    """Bar b3: 64 heads in one computation against a ModuleDict of 64."""
    torch.set_default_device(DEVICE)
    for batch_size in (32, 256):
        features, labels = torch.randn(batch_size, 512), torch.randint(0, 10, (batch_size,))
        fused, apart = together(64, features, labels), separate(64, features, labels)
        times = alternate(
            {"fused": finished(partial(repeat, fused)), "apart": finished(partial(repeat, apart))},
            repeats, warm_up=True, again="fused",
        )  # fmt: skip
        noise = same_side_noise(times["fused"], times["again"])
        report.add(
            Row(
                bar="b3", what=f"64 heads, batch {batch_size}", peer="module_dict", sense=">=", target=10, noise=noise,
                **spread(ratios(times["apart"], times["fused"])),
            )
        )  # fmt: skip
    torch.set_default_device(None)


def repeat(step: Callable[[], object]) -> None:
    for _ in range(STEPS):
        step()


def encoding(report: Report, work: Work, repeats: int) -> None:
    """Images a second through the frozen part of a probe, as they are encoded: eager and compiled."""
    parts = build(compose(overrides(work.of("feature_extraction", 1), *ON_GPU)))
    model, phase = parts.model.to(DEVICE).eval(), parts.phases[0].phase
    model.begin(phase)
    cut = split(model, phase)
    if isinstance(cut, str):
        sys.exit(f"benchmarks/gpu.py: {cut}")
    n, rounds = encoding_batch(DEVICE), 20
    images = torch.randint(0, 256, (n, 3, work.image_size, work.image_size), dtype=torch.uint8, device=DEVICE)

    def through(prefix: Callable[[torch.Tensor], object]) -> None:
        with torch.no_grad(), autocast("gpu", "bf16-mixed"):
            for _ in range(rounds):
                prefix(images)

    fast = compiled(cut.prefix)
    sides = {"eager": finished(lambda: through(cut.prefix)), "compiled": finished(lambda: through(fast))}
    times = alternate(sides, repeats, warm_up=True, again="eager")
    for name in sides:
        report.add(
            Row(
                bar="", what=f"encoding, {name}, bf16", peer="", sense=">=", target=None, unit="images/s",
                **spread([n * rounds / taken for taken in times[name]]),
            )
        )  # fmt: skip
    report.add(
        Row(
            bar="", what="encoding compiled", peer="encoding eager", sense=">=", target=None,
            noise=same_side_noise(times["eager"], times["again"]),
            **spread(ratios(times["eager"], times["compiled"])),
        )
    )  # fmt: skip


def loader(report: Report, work: Work, augmentation: str, repeats: int) -> None:
    """An epoch of full fine-tuning with its batches, over the same steps on a batch that is there."""
    cfg = compose(overrides(work.of("full", 1), *ON_GPU, f"augmentation={augmentation}", "trainer.batch_size=256"))
    parts = build(cfg)
    model = parts.model.to(DEVICE)
    model.begin(parts.phases[0].phase)
    model.train()
    parts.data.serve(DEVICE, hold_bytes(cfg, DEVICE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    steps = parts.data.steps_per_epoch
    there = list(parts.data.train_batches(0, steps))  # decodes everything, too

    def train(batches: object) -> None:
        for batch in batches:  # type: ignore[attr-defined]
            optimizer.zero_grad()
            with autocast("gpu", "bf16-mixed"):
                loss = parts.objective.loss(model.logits, batch)
            loss.backward()
            optimizer.step()

    sides = {
        "made": finished(lambda: train(parts.data.train_batches(steps, 2 * steps))),
        "there": finished(lambda: train(there)),
    }
    times = alternate(sides, repeats, warm_up=True, again="there")
    report.add(
        Row(
            bar="", what=f"epoch with its batches, {augmentation}", peer="batches that are there", sense="<=",
            target=1.1, limit="1x", noise=same_side_noise(times["there"], times["again"]),
            **spread(ratios(times["made"], times["there"])),
        )
    )  # fmt: skip


def mix(report: Report, work: Work, epochs: int) -> None:
    """One probe, one partial and one full fine-tune as a command."""
    with Ours() as side:
        whole = side.run(overrides(work.of("full", epochs), *SWEEP, *ON_GPU))
        records = side.records()
    report.add(
        Row(
            bar="a1", what=f"three jobs, {epochs} epochs, with the start of the command", peer="", sense="<=",
            target=None, unit="s", value=whole, low=whole, high=whole, remark="the peers' scripts run on a CPU only",
        )
    )  # fmt: skip
    report.details["mix"] = [
        {
            "strategy": record["arm"]["freeze_strategy"],
            "seconds": record["wall_clock_s"],
            "device": record["environment"]["device"],
            "work": record["work"],
        }
        for record in records
    ]


if __name__ == "__main__":
    main()
