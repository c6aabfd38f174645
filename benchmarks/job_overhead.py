"""What a sweep costs a job beside its training: the slope between 1 and 64 jobs, fused probes (e1) and full jobs (e2).

    TL_SHARED_DATA=... python benchmarks/job_overhead.py    # about 6 minutes

Images of 32 pixels, a tiny net, one epoch, tracker none: what is left is overhead, and the little training is in it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from measure import Report, Row, alternate, arguments, fix_threads, spread
from work import Work, ours, overrides, prepare, rates

TINY = ("backbone=test_resnet", "backbone.weights=random", "optimizer.lr=null")
BARS = {"e1": ("feature_extraction", 0.010, "fused probe"), "e2": ("full", 0.3, "full job")}


def sweep(work: Work, strategy: str, count: int) -> float:
    """Seconds of a sweep of ``count`` jobs; all must be recorded."""
    factors = f"optimizer.lr_factor={','.join(f'{rate:g}' for rate in rates(count))}"
    taken, records, _ = ours(overrides(work.of(strategy, 1), *TINY, factors))
    if len(records) != count:
        raise SystemExit(f"{len(records)} of {count} jobs have a record")
    return taken


def main() -> None:
    given = arguments(__doc__, repeats=3).parse_args()
    fix_threads()
    report = Report("job_overhead", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        work = prepare(Path(folder), 40, 10, 10, image_size=32)
        for bar, (strategy, target, what) in BARS.items():
            most = 16 if given.short and bar == "e2" else 64
            sides = {str(count): partial(sweep, work, strategy, count) for count in (1, most)}
            times = alternate(sides, 1 if given.short else given.repeats)
            slopes = [(b - a) / (most - 1) for a, b in zip(times["1"], times[str(most)], strict=True)]
            report.details[bar] = times
            report.add(
                Row(
                    bar=bar,
                    what=f"a sweep's cost a {what}: slope from 1 to {most} jobs",
                    peer="its own training included",
                    **spread(slopes),
                    sense="<=",
                    target=target,
                    unit="s",
                    limit="0 s",
                    remark="test_resnet, 40 photos at 32 px, 1 epoch, tracker none",
                )
            )
    report.write()


if __name__ == "__main__":
    main()
