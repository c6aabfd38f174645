"""What the cache is worth: a hit against a miss (f1), a miss against a plain pass (f2), partial fine-tuning on it (f3).

    TL_SHARED_DATA=... python benchmarks/feature_cache.py    # about 25 minutes

f1 and f2 are stages, not commands: the seconds of encoding that a run's record tells. f3 is the command, composed from
1 and 3 epochs to 10, against the same command with ``feature_cache=off``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import Report, Row, Times, alternate, arguments, fix_threads, ratios, require_equal, spread
from work import Ours, Work, ours, overrides, peer, prepare

EPOCHS = 10


def encoding(record: dict[str, Any], images: int) -> float:
    """Seconds of a run's encoding stage; ends the benchmark unless it encoded ``images``."""
    work = record["work"]
    if work.get("images_encoded") != images:
        raise SystemExit(f"a run encoded {work.get('images_encoded')} images, expected {images}: {json.dumps(work)}")
    return float(work["encode_s"])


def stages(work: Work, images: int) -> dict[str, float]:
    """Encoding seconds of a run that finds nothing, and of another rate's run that finds everything."""
    with Ours() as side:
        found = {}
        for name, rate, encoded in (("miss", 1e-3, images), ("hit", 2e-3, 0)):
            side.run(overrides(replace(work, learning_rates=(rate,))))
            (record,) = [one for one in side.records() if one["learning_rate"] == rate]
            found[name] = encoding(record, encoded)
    return found


def main() -> None:
    given = arguments(__doc__).parse_args()
    fix_threads()
    report = Report("feature_cache", given.short)
    repeats = 1 if given.short else given.repeats
    n, val, test, size = (100, 20, 10, 96) if given.short else (256, 50, 25, 224)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        work = prepare(Path(folder), n, val, test, image_size=size)
        told = f"{n} + {val} + {test} photos at {size} px"
        encode_rows(report, work, n + val + test, repeats, told)
        partial_row(report, work, repeats, told)
    report.write()


def encode_rows(report: Report, work: Work, images: int, repeats: int, told: str) -> None:
    """f1 and f2."""
    times: dict[str, Times] = {"miss": [], "hit": [], "plain": []}
    for _ in range(repeats):
        found = stages(work, images)
        found["plain"] = peer("plain_pass", work)[1]["encode_s"]
        for name, taken in found.items():
            times[name].append(taken)
    report.details["encode_s"] = times
    common: dict[str, Any] = {"remark": f"{told}; the stage that the record tells"}
    report.add(
        Row(
            bar="f1",
            what="encoding: cache miss",
            peer="cache hit",
            **spread(ratios(times["miss"], times["hit"])),
            sense=">=",
            target=20,
            limit="the backbone against a read of 2 KB an image",
            **common,
        )
    )
    report.add(
        Row(
            bar="f2",
            what="encoding: cache miss",
            peer="plain_pass",
            **spread(ratios(times["miss"], times["plain"])),
            sense="<=",
            target=1.10,
            limit="1x",
            **common,
        )
    )


def partial_row(report: Report, work: Work, repeats: int, told: str) -> None:
    """f3."""

    def run(epochs: int, cache: str) -> tuple[float, list[float]]:
        taken, _, curves = ours(overrides(work.of("last_n_blocks", epochs), f"feature_cache={cache}"))
        return taken, curves[0]

    equal = require_equal("val NLL, cached against live", run(3, "auto")[1], run(3, "off")[1], 1e-3)
    sides = {cache: (lambda cache=cache: run(EPOCHS, cache)[0]) for cache in ("off", "auto")}
    times = alternate(sides, repeats)
    report.details["partial"] = {"seconds_of_10_epochs": times, "largest_relative_difference": equal}
    report.add(
        Row(
            bar="f3",
            what=f"last stage of resnet18, {EPOCHS} epochs: feature_cache=off",
            peer="feature_cache=auto",
            **spread(ratios(times["off"], times["auto"])),
            sense=">=",
            target=3,
            limit="2.1x of the arithmetic; 4.5x measured step by step, early layers being bound by memory",
            remark=f"{told}; the whole command",
        )
    )


if __name__ == "__main__":
    main()
