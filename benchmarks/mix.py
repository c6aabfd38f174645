"""One probe, one partial and one full fine-tune of resnet18 (bar a1), and 24 + 6 + 3 of them (a2), against peers.

    TL_SHARED_DATA=... python benchmarks/mix.py            # 256 photos at 224 px, about 45 minutes
    TL_SHARED_DATA=... python benchmarks/mix.py --whole    # also once 1000 photos and 10 epochs, uncut, about an hour

A mix over 10 epochs takes hours, so its cost is composed: each job runs for two small numbers of epochs, and a straight
line through both gives 10. Ours is the command with everything new, so decoding and encoding are inside; the later
fine-tunes of a2 cost what they add to a sweep that has them. A peer's job is a process that shares nothing.
"""

from __future__ import annotations

import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import Report, Row, Times, arguments, fix_threads, line, ratios, same_side_noise, say, spread
from work import Ours, Work, ours, overrides, peer, prepare, same_results

STRATEGIES = ("feature_extraction", "last_n_blocks", "full")
COUNTS = {"feature_extraction": 24, "last_n_blocks": 6, "full": 3}
EPOCHS, LENGTHS = 10, (1, 3)
OUR_LENGTHS = (3, 5)  # a phase of one epoch looks at each image once and keeps nothing, so that 1 is on no line with 3
SWEEP = (f"freeze_strategy={','.join(STRATEGIES)}", "optimizer.lr=null")
PEERS = {  # script: (bars' targets, limits)
    "lightning_frozen": ((1.35, 2.8), ("1.5x of the arithmetic: 5+2f against 3+3f", "3.4x")),
    "lightning_finetuning": ((1.7, 4.0), ("1.9x", "5.5x")),
    "timm_train": ((2.0, 5.5), ("2.4x", "7.5x")),
    "fastai_tune": ((None, None), ("1.9x", "5.5x")),
}
if find_spec("fastai") is None:
    del PEERS["fastai_tune"]


def factors(first: int, count: int) -> str:
    """Rate factors near 1, none twice."""
    return f"optimizer.lr_factor={','.join(f'{0.5 + 0.03 * number:g}' for number in range(first, first + count))}"


def ours_once(work: Work, epochs: int) -> tuple[float, list[list[float]]]:
    """Seconds and val curves of the sweep of a1."""
    taken, _, curves = ours(overrides(work.of("full", epochs), *SWEEP))
    return taken, curves


def ours_many(work: Work, epochs: int) -> float:
    """Seconds of the sweep of a2, composed: all probes, then what one more partial and one more full job add."""
    total = 0.0
    with Ours() as side:
        for strategy, count in COUNTS.items():
            command = partial(overrides, work.of(strategy, epochs), "optimizer.lr=null")
            if strategy == "feature_extraction":
                total += side.run(command(factors(0, count)))
                continue
            first = side.run(command(factors(0, 1)))
            one, two = side.run(command(factors(1, 1))), side.run(command(factors(2, 2)))
            total += first + (count - 1) * (two - one)
    return total


def peer_jobs(script: str, work: Work, epochs: int) -> dict[str, tuple[float, dict[str, Any]]]:
    """Seconds and account of one job of each strategy."""
    return {strategy: peer(script, work.of(strategy, epochs)) for strategy in STRATEGIES}


def check(curves: list[list[float]], jobs: dict[str, tuple[float, dict[str, Any]]]) -> float:
    """Equal before fast: our three jobs, cached where ours caches, against the frozen Lightning module's."""
    return max(
        same_results(f"val NLL of {strategy}", [curve], jobs[strategy][1], 1e-3)
        for strategy, curve in zip(sorted(STRATEGIES), curves, strict=True)
    )


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--one-of-each", action="store_true", help="a1 alone")
    parser.add_argument("--whole", action="store_true", help="also a1 once, uncut: 1000 photos, 10 epochs")
    given = parser.parse_args()
    fix_threads()
    report = Report("mix", given.short)
    if "fastai_tune" not in PEERS:
        report.details["left_out"] = "fastai_tune: fastai is not installed"
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        n, val, size = (64, 20, 96) if given.short else (256, 50, 224)
        work = prepare(Path(folder), n, val, image_size=size)
        for _ in range(1 if given.short else given.repeats):
            turn(report.details, work, short=given.short or given.one_of_each)
        compose(report, f"{n} photos at {size} px")
        if given.whole:
            whole(report, prepare(Path(folder), 1000, 200, image_size=224))
    report.write()


def turn(details: dict[str, Any], work: Work, *, short: bool) -> None:
    """Seconds of 10 epochs of each side: ours under ``a1`` and ``a2``, a peer's under its name and bar.

    The reduced set, and a1 alone, leave out a2, the second run of ours and fastai.
    """
    times: dict[str, Times] = details.setdefault("seconds_of_10_epochs", {})

    def enter(name: str, points: dict[int, float]) -> None:
        times.setdefault(name, []).append(line(points)(EPOCHS))
        say(f"     {name}: {times[name][-1]:.1f} s")

    once = {epochs: ours_once(work, epochs) for epochs in OUR_LENGTHS}
    enter("a1", {epochs: taken for epochs, (taken, _) in once.items()})
    if not short:
        enter("again", {epochs: ours_once(work, epochs)[0] for epochs in OUR_LENGTHS})
        enter("a2", {epochs: ours_many(work, epochs) for epochs in OUR_LENGTHS})
    for script in PEERS:
        if short and script == "fastai_tune":
            continue
        jobs = {epochs: peer_jobs(script, work, epochs) for epochs in LENGTHS}
        if script == "lightning_frozen":
            details["largest_relative_difference"] = check(once[LENGTHS[-1]][1], jobs[LENGTHS[-1]])
        for bar in ("a1",) if short else ("a1", "a2"):
            counts = COUNTS if bar == "a2" else dict.fromkeys(STRATEGIES, 1)
            enter(
                f"{script} {bar}",
                {epochs: sum(counts[one] * jobs[epochs][one][0] for one in STRATEGIES) for epochs in LENGTHS},
            )


def compose(report: Report, images: str) -> None:
    """The rows of both bars."""
    times = report.details["seconds_of_10_epochs"]
    noise = same_side_noise(times["a1"], times["again"]) if "again" in times else None
    for script, (targets, limits) in PEERS.items():
        for bar, target, limit in zip(("a1", "a2"), targets, limits, strict=True):
            if f"{script} {bar}" not in times:
                continue
            jobs = "1 + 1 + 1 jobs" if bar == "a1" else "24 + 6 + 3 jobs"
            report.add(
                Row(
                    bar=bar,
                    what=f"{jobs} (probe, partial, full), resnet18, {EPOCHS} epochs",
                    peer=script,
                    **spread(ratios(times[f"{script} {bar}"], times[bar])),
                    sense=">=",
                    target=target,
                    limit=limit,
                    noise=noise,
                    remark=f"{images}; composed from 1 and 3 epochs",
                )
            )


def whole(report: Report, work: Work) -> None:
    """a1 uncut, once: does the composition hold?"""
    mine, curves = ours_once(work, EPOCHS)
    jobs = peer_jobs("lightning_frozen", work, EPOCHS)
    check(curves, jobs)
    theirs = sum(taken for taken, _ in jobs.values())
    report.details["whole"] = {"ours_s": mine, "lightning_frozen_s": theirs}
    report.add(
        Row(
            bar="a1",
            what=f"1 + 1 + 1 jobs, resnet18, {EPOCHS} epochs, run whole",
            peer="lightning_frozen",
            **spread([theirs / mine]),
            sense=">=",
            target=PEERS["lightning_frozen"][0][0],
            limit=PEERS["lightning_frozen"][1][0],
            remark="1000 photos at 224 px; one run",
        )
    )


if __name__ == "__main__":
    main()
