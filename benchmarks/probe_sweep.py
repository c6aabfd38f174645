"""64 linear probes in one sweep: against one probe (b1), the frozen Lightning module (b2), a script that caches (b5).

    TL_SHARED_DATA=... python benchmarks/probe_sweep.py    # 1000 + 200 photos at 224 and 64 px, about 45 minutes

The probes differ in the learning rate. All sides start with empty folders, so decoding and encoding are inside. Before
any time counts, the val NLL of every probe after every epoch must be that of the script written by hand.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from measure import Report, Row, alternate, arguments, fix_threads, line, ratios, same_side_noise, spread
from work import Work, ours, overrides, peer, prepare, rates, same_results

COUNT = 64
EPOCHS = 20
MOST_OF_ONE = {224: 1.05, 64: 1.25}  # b1, by image size


def main() -> None:
    given = arguments(__doc__).parse_args()
    fix_threads()
    report = Report("probe_sweep", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        n, val, sizes = (200, 40, (64,)) if given.short else (1000, 200, (224, 64))
        for size in sizes:
            work = prepare(Path(folder), n, val, image_size=size, batch_size=256, epochs=EPOCHS)
            compare(report, work, f"{n} + {val} photos at {size} px", 1 if given.short else given.repeats)
    report.write()


def compare(report: Report, work: Work, images: str, repeats: int) -> None:
    """All rows at one image size."""
    many, one = replace(work, learning_rates=rates(COUNT)), replace(work, learning_rates=rates(COUNT)[-1:])
    curves, account = ours(overrides(many))[2], peer("by_hand_cached", many)[1]
    equal = same_results(f"val NLL of {COUNT} probes", curves, account, 1e-3)
    sides = {
        "64 probes": lambda: ours(overrides(many))[0],
        "1 probe": lambda: ours(overrides(one))[0],
        "by_hand_cached": lambda: peer("by_hand_cached", many)[0],
    }
    times = alternate(sides, repeats, again="1 probe")
    live = {
        script: {epochs: peer(script, replace(jobs, epochs=epochs))[0] for epochs in (1, 3)}
        for script, jobs in {"lightning_frozen": one, "module_dict": many}.items()
    }
    report.details[images] = {"seconds": times, "live_seconds_by_epochs": live, "largest_relative_difference": equal}
    noise = same_side_noise(times["1 probe"], times["again"])
    size = work.image_size
    what = f"{COUNT} probes, resnet18, {EPOCHS} epochs"
    report.add(
        Row(
            bar="b1",
            what=what,
            peer="our own sweep of one probe",
            **spread(ratios(times["64 probes"], times["1 probe"])),
            sense="<=",
            target=MOST_OF_ONE[size],
            limit="1x",
            noise=noise,
            remark=images,
        )
    )
    report.add(
        Row(
            bar="b5",
            what=what,
            peer="by_hand_cached",
            **spread(ratios(times["64 probes"], times["by_hand_cached"])),
            sense="<=",
            target=1.1,
            limit="below 1x: the heads' steps are shared",
            noise=noise,
            remark=images,
        )
    )
    for bar, script, jobs in (("b2", "lightning_frozen", COUNT), ("", "module_dict", 1)):
        whole = jobs * line(live[script])(EPOCHS)
        report.add(
            Row(
                bar=bar,
                what=what,
                peer=script,
                **spread([whole / taken for taken in times["64 probes"]]),
                sense=">=",
                target=100 if bar and size == 224 else None,
                limit=f"about {COUNT * EPOCHS}x" if bar else f"about {EPOCHS}x",
                noise=noise,
                remark=f"{images}; the peer extrapolated from runs of 1 and 3 epochs{f', times {jobs}' if bar else ''}",
            )
        )


if __name__ == "__main__":
    main()
