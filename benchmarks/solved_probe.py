"""A probe solved over a path of penalties, whole command, against features by hand and scikit-learn. No bar of its own.

    TL_SHARED_DATA=... python benchmarks/solved_probe.py    # about 8 minutes

Both sides decode and encode; val chooses the penalty and must come to the same accuracy on both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import Report, Row, alternate, arguments, fix_threads, ratios, require_equal, same_side_noise, spread
from work import ours, overrides, peer, prepare

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def main() -> None:
    given = arguments(__doc__).parse_args()
    fix_threads()
    report = Report("solved_probe", given.short)
    n, val, size = (100, 20, 64) if given.short else (1000, 200, 224)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder:
        work = prepare(Path(folder), n, val, image_size=size, penalties=PENALTIES)
        command = overrides(work, "head=logistic", f"head.penalties=[{','.join(map(str, PENALTIES))}]")
        _, (record,), _ = ours(command)
        account = peer("sklearn_probe", work)[1]
        mine, theirs = record["metrics"]["val"]["accuracy"], account["val_accuracy"]
        require_equal("val accuracy", [mine], [theirs], 1e-6)
        sides = {"ours": lambda: ours(command)[0], "sklearn_probe": lambda: peer("sklearn_probe", work)[0]}
        times = alternate(sides, 1 if given.short else given.repeats, again="ours")
    report.details = {"seconds": times, "val_accuracy": mine}
    report.add(
        Row(
            bar="",
            what=f"logistic regression over {len(PENALTIES)} penalties on resnet18's features",
            peer="sklearn_probe",
            **spread(ratios(times["sklearn_probe"], times["ours"])),
            sense=">=",
            target=None,
            limit="1x: decoding and encoding weigh most on both sides",
            noise=same_side_noise(times["ours"], times["again"]),
            remark=f"{n} + {val} photos at {size} px; equal val accuracy",
        )
    )
    report.write()


if __name__ == "__main__":
    main()
