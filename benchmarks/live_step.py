"""What a step costs beside its arithmetic: a live step of resnet18 (c1), and a step of a head on kept features (c2).

    TL_SHARED_DATA=... python benchmarks/live_step.py    # about 8 minutes

Both sides run in this process on one thread with all images in memory; the figure is the slope over epochs of the
process's own CPU time, validations included, so that start, decoding and encoding fall out. The bare loops are those of
the peers' scripts. A margin of 3% is near the noise of a machine, so the milliseconds that are added stand beside it.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import (
    Report,
    Row,
    Times,
    alternate,
    arguments,
    fix_threads,
    ratios,
    require_equal,
    same_side_noise,
    spread,
)
from work import PEERS, Ours, Work, overrides, prepare

Side = Callable[[int], tuple[float, float]]  # epochs -> CPU seconds, last val NLL


def our_run(work: Work, folder: Path, *more: str) -> Side:
    """``run(cfg)``, each into a folder of its own, the cache shared."""
    from tl_experiments import compose, run

    logging.disable(logging.INFO)
    count = 0

    def side(epochs: int) -> tuple[float, float]:
        nonlocal count
        count += 1
        cfg = compose(overrides(replace(work, epochs=epochs), f"output_dir={folder}", *more))
        started = time.process_time()
        run(cfg, folder / str(count))
        taken = time.process_time() - started
        lines = (folder / str(count) / "metrics.jsonl").read_text().splitlines()
        return taken, float(json.loads(lines[-1])["val_nll"])

    return side


def bare_live(work: Work) -> Side:
    """The loop of ``peers/by_hand.py`` with the images in memory."""
    import torch
    from torch.nn.functional import cross_entropy

    from shared import EVAL_BATCH, Net, Order, adamw, images

    told = asdict(work)
    held = {split: _in_memory(images(told, split)) for split in ("train", "val")}

    def side(epochs: int) -> tuple[float, float]:
        started = time.process_time()
        net, order = Net(told), Order(len(held["train"][1]), work.batch_size)
        optimizer = adamw(net.parameters(), work.learning_rates[0])
        for _ in range(epochs):
            net.train()
            for batch in order:
                image, label = (each[torch.tensor(batch)] for each in held["train"])
                optimizer.zero_grad()
                cross_entropy(net(image), label).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                image, label = held["val"]
                out = torch.cat([net(part) for part in image.split(EVAL_BATCH)])
                nll = float(cross_entropy(out, label))
        return time.process_time() - started, nll

    return side


def bare_heads(work: Work) -> Side:
    """The loop of ``peers/by_hand_cached.py`` on features that are there."""
    import by_hand_cached
    from shared import Net

    told = asdict(work)
    net = Net(told)
    train, val = (by_hand_cached.encode(net, told, split) for split in ("train", "val"))
    start = {name: tensor.clone() for name, tensor in net.tail.state_dict().items()}

    def side(epochs: int) -> tuple[float, float]:
        net.tail.load_state_dict(start)
        started = time.process_time()
        rate = work.learning_rates[0]
        curve = by_hand_cached.train_head(net.tail, {**told, "epochs": epochs}, rate, train, val)
        return time.process_time() - started, curve[-1]

    return side


def _in_memory(photos: Any) -> tuple[Any, Any]:
    import torch

    pairs = [photos[index] for index in range(len(photos))]
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def step_seconds(side: Side, few: int, many: int, steps: int) -> float:
    """CPU seconds a step, validations included: the slope between two lengths."""
    return (side(many)[0] - side(few)[0]) / (steps * (many - few))


def main() -> None:
    given = arguments(__doc__).parse_args()
    fix_threads()
    sys.path.insert(0, str(PEERS))
    import torch

    torch.set_num_threads(1)
    report = Report("live_step", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder, Ours() as home:
        n = 64 if given.short else 256
        work = prepare(Path(folder), n, 10, 10, image_size=64 if given.short else 96)
        live = replace(work, strategy="full", learning_rates=(3e-4,))
        cases = {
            "c1": (
                our_run(live, home.folder / "live", "feature_cache=off"),
                bare_live(live),
                (1, 3),
                1.03,
                "live step",
            ),
            "c2": (our_run(work, home.folder / "kept"), bare_heads(work), (20, 120), 1.3, "step on kept features"),
        }
        for bar, (ours, bare, lengths, target, what) in cases.items():
            require_equal(f"val NLL, {what}", [ours(lengths[0])[1]], [bare(lengths[0])[1]], 1e-3)
            sides = {
                name: (lambda side=side, lengths=lengths: step_seconds(side, *lengths, n // 32))
                for name, side in {"ours": ours, "bare loop": bare}.items()
            }
            times = alternate(sides, 1 if given.short else given.repeats, again="bare loop")
            report.details[bar] = {"cpu_s_a_step": times}
            add(report, bar, what, target, times, f"{n} photos at {work.image_size} px, batches of 32")
    report.write()


def add(report: Report, bar: str, what: str, target: float, times: dict[str, Times], told: str) -> None:
    """The ratio, and the milliseconds behind it."""
    added = [1000 * (a - b) for a, b in zip(times["ours"], times["bare loop"], strict=True)]
    bare = 1000 * spread(times["bare loop"])["value"]
    report.add(
        Row(
            bar=bar,
            what=f"our {what}",
            peer="a bare loop",
            **spread(ratios(times["ours"], times["bare loop"])),
            sense="<=",
            target=target,
            limit="1x",
            noise=same_side_noise(times["bare loop"], times["again"]),
            remark=f"{told}; bare step {bare:.2f} ms, added {spread(added)['value']:.2f} ms",
        )
    )


if __name__ == "__main__":
    main()
