"""docs/benchmarks.md from benchmarks/results/*.json: every figure with its spread, limit, target and machine.

    python scripts/benchmark_page.py

A script's full set is shown where it has been run, its reduced set elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md"

HEAD = """\
# How fast it is

Measured by the scripts in [benchmarks/](../benchmarks), as ratios of two sides in one run: the sides take turns, each
has the same cores with one thread each, the same images, order, start weights, optimizer and validations, and their
results must be equal before any time counts (where the peer computes the same at all). The median is given, then the
least and the most. *Limit* is what arithmetic allows at best; *target* is what this project asks of itself, met or
not. *Noise* is how far a side's ratio to itself strayed from 1 in the same run.

The peers are scripts in [benchmarks/peers/](../benchmarks/peers):

| peer | what it is |
|---|---|
| `by_hand` | a PyTorch script, the frozen part in eval mode and without gradient |
| `by_hand_cached` | a PyTorch script that encodes each image once, then trains one head after the other |
| `lightning_frozen` | a plain Lightning module, frozen in the same way |
| `lightning_finetuning` | Lightning's `BackboneFinetuning` as it ships: frozen but for its BatchNorm layers |
| `timm_train` | what timm's `train.py` calls, in its order (the file is not in timm's package); no freezing |
| `sklearn_probe` | features encoded once, scikit-learn's `LogisticRegression` for each penalty, warm start |
| `module_dict` | 64 heads in a `ModuleDict` on one forward pass, as DINOv2 evaluates probes |
| `fastai_tune` | fastai's learner, frozen by layer groups |
| `by_hand_ddp` | a PyTorch script for several processes: DistributedDataParallel, images in memory |
| `plain_pass` | decode and encode every image once, keep nothing |

`make bench` runs the reduced sets (small images, few repeats); the scripts without `--short` run the full ones. This
page is made from their results by `scripts/benchmark_page.py`.

Where a target is not met: f3 counts the whole command, import and encoding included, and its live side runs in
channels_last, which makes the early layers, the ones that are skipped, cheaper than the 4.5x of contiguous tensors
supposes; arithmetic alone gives 2.1x. c1 lies within what other work on the machine moved it by. The growth of h was
measured on sizes so small that what a command costs at all weighs in it, beside other work.

"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page's text.

    Args:
        results: File stem -> content.
    """
    shown = {
        stem: content
        for stem, content in sorted(results.items())
        if "rows" in content and not (stem.endswith("_short") and stem.removesuffix("_short") in results)
    }
    rows = [(row, content) for content in shown.values() for row in content["rows"]]
    rows.sort(key=lambda pair: (pair[0]["bar"] == "", pair[0]["bar"]))  # stable: otherwise as the scripts wrote them
    lines = [
        "| bar | what | against | measured | limit | target | met | noise | how | set |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row, content["set"]) for row, content in rows),
        "",
        "## Where and how",
        "",
        "| command | processor, cores used | versions | commit |",
        "|---|---|---|---|",
        *(_origin(content) for content in shown.values()),
    ]
    return HEAD + "\n".join(lines) + "\n"


def _line(row: dict[str, Any], size: str) -> str:
    target = "" if row["target"] is None else f"{row['sense']} {row['target']:g}{_unit(row)}"
    noise = "" if row["noise"] is None else f"{100 * row['noise']:.1f}%"
    measured = f"{_figure(row['value'])}{_unit(row)} ({_figure(row['low'])} to {_figure(row['high'])})"
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    cells = (
        row["bar"], row["what"], row["peer"], measured, row["limit"], target, met, noise, row["remark"], size,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _origin(content: dict[str, Any]) -> str:
    machine = content["machine"]
    facts = {
        "processor": machine["processor"],
        "cores": machine["cores_used"] and f"{machine['cores_used']} of {machine['cores']} cores",
        "Python": machine["python"] and f"Python {machine['python']}",
    }
    told = [fact or f"{name} not recorded" for name, fact in facts.items()]
    used, python = ", ".join(told[:2]), told[2]
    known = content["versions"]
    packages = ", ".join(f"{name} {known[name]}" for name in ("torch", "timm", "pytorch-lightning") if name in known)
    return f"| `{content['command']}` | {used} | {python}, {packages} | {content['commit']} |"


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _unit(row: dict[str, Any]) -> str:
    return f" {row['unit']}" if row["unit"] == "s" else row["unit"]


def main() -> None:
    PAGE.write_text(page({path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}))


if __name__ == "__main__":
    main()
