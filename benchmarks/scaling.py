"""How cost grows: per added probe, with the number of images, over backbones, and with two jobs at once (bar h).

TL_SHARED_DATA=... python benchmarks/scaling.py    # about 15 minutes
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from measure import Report, Row, alternate, arguments, fix_threads, ratios, spread
from work import Ours, Work, ours, overrides, prepare, rates

EPOCHS = 20


def main() -> None:
    given = arguments(__doc__, repeats=3).parse_args()
    report = Report("scaling", given.short)
    repeats = 1 if given.short else given.repeats
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        fix_threads(2)
        n, val, size = (100, 20, 64) if given.short else (500, 100, 224)
        work = prepare(Path(folder), n, val, image_size=size, batch_size=256, epochs=EPOCHS)
        at_once(report, work, repeats)
        fix_threads(1)
        added_probe(report, work, repeats)
        images(report, Path(folder), n, val, size, repeats)
        backbones(report, work, n + val + 25)
    report.write()


def added_probe(report: Report, work: Work, repeats: int) -> None:
    """Slope from 1 to 64 probes as a share of one."""
    sides = {
        str(count): partial(lambda job: ours(overrides(job))[0], replace(work, learning_rates=rates(count)))
        for count in (1, 64)
    }
    times = alternate(sides, repeats)
    report.details["probes"] = times
    shares = [(ratio - 1) / 63 for ratio in ratios(times["64"], times["1"])]
    report.add(
        Row(
            bar="h",
            what="a further probe's share of the cost of one",
            peer="our own sweep of one probe",
            **spread(shares),
            sense="<=",
            target=0.01,
            unit="",
            limit="0",
            remark=f"slope from 1 to 64 probes of {EPOCHS} epochs at {work.image_size} px",
        )
    )


def images(report: Report, folder: Path, n: int, val: int, size: int, repeats: int) -> None:
    """Cost from 1 to 2 times the images against cost from 2 to 4 times, halved: 1 where it grows linearly."""
    sides = {}
    for times in (1, 2, 4):
        work = prepare(folder, times * n, times * val, times * 25, image_size=size, epochs=EPOCHS)
        sides[str(times)] = partial(lambda job: ours(overrides(job))[0], work)
    measured = alternate(sides, repeats)
    report.details["images"] = measured
    growth = [(four - two) / 2 / (two - one) for one, two, four in zip(*(measured[key] for key in "124"), strict=True)]
    report.add(
        Row(
            bar="h",
            what="growth from 2 to 4 times the images, against 1 to 2 times",
            peer="linear growth",
            **spread(growth),
            sense="<=",
            target=1.15,
            limit="1x",
            remark=f"one probe, {n} photos and multiples at {size} px",
        )
    )


def backbones(report: Report, work: Work, count: int) -> None:
    """Images decoded by a sweep over two backbones of one geometry and one of another."""
    sizes = f"backbone.preprocessing.image_size={work.image_size},{work.image_size // 2}"
    with Ours() as side:
        side.run(overrides(work, "backbone=resnet18,resnet10t", "backbone.weights=random", sizes))
        records = side.records()
    if len(records) != 4:
        raise SystemExit(f"{len(records)} records, expected 4")
    decoded = sum(record["work"]["images_decoded"] for record in records)
    report.add(
        Row(
            bar="h",
            what="images decoded by a sweep over 2 backbones at 2 sizes",
            peer="images there are",
            **spread([decoded / count]),
            sense="<=",
            target=1.0,
            limit="1x",
            remark=f"{count} photos; a count, no time",
        )
    )


def at_once(report: Report, work: Work, repeats: int) -> None:
    """Two full fine-tunes one after the other against both at once, a core each."""
    job = replace(work, strategy="full", epochs=2, batch_size=32)
    rate = "optimizer.lr=1e-4,3e-4"

    def run(jobs: int) -> float:
        return ours(overrides(job, rate, f"executor.jobs_per_device={jobs}", f"executor.threads_per_job={3 - jobs}"))[0]

    times = alternate({"one by one": partial(run, 1), "at once": partial(run, 2)}, repeats)
    report.details["at_once"] = times
    report.add(
        Row(
            bar="h",
            what="two full fine-tunes one by one, two threads each",
            peer="both at once, a thread each",
            **spread(ratios(times["one by one"], times["at once"])),
            sense=">=",
            target=0.95,
            limit="1x where a job uses two threads fully",
            remark=f"2 cores, {work.image_size} px",
        )
    )


if __name__ == "__main__":
    main()
