"""What probes keep (bar g): bytes saved for backward, growth of memory over 50 jobs, bytes on disk of 64 jobs.

    TL_SHARED_DATA=... python benchmarks/memory_and_disk.py    # about 4 minutes

Counts, not times: one run each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import Report, Row, arguments, fix_threads, spread
from work import PEERS, Ours, Work, overrides, prepare, rates

JOBS, PROBES = 50, 64


def saved_bytes(call: Callable[[], object]) -> int:
    """Bytes that autograd kept for backward passes during ``call``, parameters left out, each storage once a step."""
    import torch

    total, seen = 0, set[int]()

    def pack(tensor: Any) -> Any:
        nonlocal total
        if not isinstance(tensor, torch.nn.Parameter) and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.untyped_storage().nbytes()
        return tensor

    def unpack(tensor: Any) -> Any:
        seen.discard(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        call()
    return total


def anonymous_bytes() -> int:
    """RssAnon of this process: memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return 1024 * int(kibibytes)


def activations(report: Report, work: Work, folder: Path) -> None:
    """A probe's run against ``BackboneFinetuning``'s, the same steps."""
    from lightning_finetuning import BackboneFinetuning, Module, Net, fit
    from shared import eval_loader, train_loader
    from tl_experiments import compose, run

    told = asdict(work)
    module = Module(Net(told, properly_frozen=False), 1e-3)
    mine = saved_bytes(lambda: run(compose(overrides(work, f"output_dir={folder}")), folder / "probe"))
    theirs = saved_bytes(
        lambda: fit(module, work.epochs, train_loader(told), eval_loader(told, "val"), [BackboneFinetuning()])
    )
    report.details["bytes_saved_for_backward"] = {"ours": mine, "lightning_finetuning": theirs}
    report.add(
        Row(
            bar="g",
            what="bytes kept for backward by a probe",
            peer="lightning_finetuning",
            **spread([mine / theirs]),
            sense="<=",
            target=0.1,
            limit="0x",
            remark=f"all steps of one epoch, batches of {work.batch_size} at {work.image_size} px; a count, no time",
        )
    )


def growth(report: Report, work: Work, folder: Path, jobs: int) -> None:
    """Memory after many runs in one process against after the first five."""
    from tl_experiments import compose, run

    sizes = []
    for number, rate in enumerate(rates(jobs)):
        run(compose(overrides(replace(work, learning_rates=(rate,)), f"output_dir={folder}")), folder / str(number))
        sizes.append(anonymous_bytes())
    report.details["rss_anon_bytes"] = sizes
    report.add(
        Row(
            bar="g",
            what=f"growth of RssAnon from run 5 to run {jobs} in one process",
            peer="after run 5",
            **spread([sizes[-1] / sizes[4] - 1]),
            sense="<=",
            target=0.05,
            unit="",
            limit="0",
            remark="a count, no time",
        )
    )


def disk(report: Report, work: Work) -> None:
    """Everything that 64 probe jobs leave, but the cache, and the backbone's file, against backbone + 64 heads."""
    with Ours() as side:
        side.run(overrides(replace(work, learning_rates=rates(PROBES))))
        folder = side.folder / "outputs" / "bench"
        left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if len(side.records()) != PROBES:
            raise SystemExit(f"{len(side.records())} of {PROBES} jobs have a record")
    backbone, head = Path(work.weights).stat().st_size, Path(work.start).stat().st_size
    report.details["disk_bytes"] = {"left": left, "backbone": backbone, "head": head}
    report.add(
        Row(
            bar="g",
            what=f"disk of {PROBES} probe jobs and their backbone",
            peer=f"1 backbone + {PROBES} heads",
            **spread([(backbone + left) / (backbone + PROBES * head)]),
            sense="<=",
            target=1.2,
            limit="1x",
            remark="records, metrics, predictions included, the cache not; a count, no time",
        )
    )


def main() -> None:
    given = arguments(__doc__, repeats=1).parse_args()
    fix_threads()
    sys.path.insert(0, str(PEERS))
    import logging

    import torch

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    report = Report("memory_and_disk", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-photos-") as folder, Ours() as home:
        work = prepare(Path(folder), 64, 20, 10, image_size=64 if given.short else 224, epochs=1)
        disk(report, work)
        activations(report, work, home.folder / "activations")
        growth(report, replace(work, image_size=64), home.folder / "growth", JOBS)
    report.write()


if __name__ == "__main__":
    main()
