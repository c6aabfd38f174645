"""The report: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.columns import caption, explanation, job_name
from tl_experiments.analysis.compare import Evidence
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.analysis.wording import count, interval, plural, seconds, share, signed
from tl_experiments.report import facts, stamp
from tl_experiments.report.charts import Group
from tl_experiments.report.commands import commands
from tl_experiments.report.contrasts import contrasts
from tl_experiments.report.details import WorstPrediction
from tl_experiments.report.figure import Figure
from tl_experiments.report.overview import average_ranks, interquartile_means, overview_sentence, standing_rows
from tl_experiments.report.sections import ArmDetail, arm_details, class_rows, dataset_figures, groups, pair_rows
from tl_experiments.report.styles import PALETTE, Style
from tl_experiments.report.svg import draw, key
from tl_experiments.report.table import cells, columns

PICTURE_BYTES = 2_000_000  # all pictures of a report together
Pictures = Callable[[FinishedRun, Sequence[str]], Mapping[str, bytes]]


def render(evidence: Evidence, pictures: Pictures) -> str:
    """The page.

    Args:
        evidence: What is shown.
        pictures: Run and ids of images -> their small JPEGs or PNGs; missing ones are absent.
    """
    templates = _templates()
    css = Markup(templates.get_template("style.css").render(palette=PALETTE))
    js = Markup(templates.get_template("script.js").render())
    comparison, found, album = evidence.comparison, groups(evidence), _Album(pictures)
    runs = [run for row in comparison.rows for run in evidence.runs.get(row.arm, ())]
    styles = found[0].styles
    return templates.get_template("report.html").render(
        title=_title(runs),
        subtitle=_subtitle(comparison, runs),
        policy=_policy(css, js),
        stamp=stamp(comparison),
        css=css,
        js=js,
        sections=_sections(comparison, found),
        verdicts=[_verdict(group, comparison, styles) for group in found],
        warnings=comparison.warnings,
        **_arms(comparison, styles),
        overview=_overview(comparison, styles),
        datasets=[_dataset(f"data{number}", group, comparison, album) for number, group in enumerate(found)],
        **_appendix(evidence, found, runs),
        n_runs=plural(len(runs), "run"),
        # contrasts grow with the square of the arms: they stand in comparison.json, whose hash covers them
        comparison={
            key: value for key, value in json.loads(comparison.to_json()).items() if key not in ("contrasts", "sha256")
        },
    )


def _sections(comparison: Comparison, found: Sequence[Group]) -> list[tuple[str, str]]:
    """Anchors and names, in the order of the page."""
    overview = [("overview", "All datasets")] if comparison.overview else []
    datasets = [(f"data{number}", group.rows[0].arm.dataset) for number, group in enumerate(found)]
    notes = [("notes", "Notes")] if comparison.notes or comparison.lost_jobs else []
    end = [("reproduce", "Reproduce"), ("cost", "Cost"), ("environment", "Environment")]
    return [("verdict", "Verdict"), ("arms", "Arms"), *overview, *datasets, *end, *notes]


def _arms(comparison: Comparison, styles: Mapping[Arm, Style]) -> dict[str, Any]:
    """The table of arms; each row leads to its command."""
    shown = columns(comparison.rows)
    return {
        "caption": caption(comparison.rows),
        "explanation": (*explanation(comparison.rows), "other metrics, such as the calibration error: mean over runs"),
        "columns": shown,
        "strategy_column": [column.title for column in shown].index("freeze_strategy"),
        "rows": [
            {
                "cells": cells(row, shown),
                "key": key(styles[row.arm]),
                "anchor": f"arm{place}",
                "tag": "recommended" if row.recommended else "negative transfer" if row.negative_transfer else "",
                "class": "win" if row.recommended else "",
            }
            for place, row in enumerate(comparison.rows)
        ],
    }


def _appendix(evidence: Evidence, found: Sequence[Group], runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """How to make the rows again, what they cost and rest on, and what is in no row."""
    comparison, styles = evidence.comparison, found[0].styles
    named = {arm: name for group in found for arm, name in group.names.items()}
    if len(found) > 1:
        named = {arm: f"{name} · {arm.dataset}" for arm, name in named.items()}
    own = [(row, named[row.arm], evidence.runs.get(row.arm, ())) for row in comparison.rows]
    return {
        "reproduce": [
            {"anchor": f"arm{place}", "key": key(styles[row.arm]), "name": name, "lines": commands(of_arm)}
            for place, (row, name, of_arm) in enumerate(own)
        ],
        "costs": facts.cost_rows(evidence.costs),
        "spent": [facts.spent_row(row, name, of_arm) for row, name, of_arm in own],
        "environments": facts.environments(runs),
        "data_facts": facts.data_rows(runs),
        "weights": facts.weight_rows(runs),
        "notes": comparison.notes,
        "lost": [
            (job_name(job), job.state, job.cause, job.log or "", "" if job.seconds is None else seconds(job.seconds))
            for job in comparison.lost_jobs
        ],
    }


class _Album:
    """Pictures as data: URIs, until their limit is reached."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._left = PICTURE_BYTES

    def of(self, run: FinishedRun, items: Sequence[str]) -> dict[str, dict[str, Any]]:
        from PIL import Image

        found = {}
        for item, data in self._pictures(run, items).items():
            if len(data) <= self._left:
                self._left -= len(data)
                with Image.open(io.BytesIO(data)) as image:
                    size, kind = image.size, "png" if image.format == "PNG" else "jpeg"
                uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
                found[item] = {"picture": Markup(uri), "width": size[0], "height": size[1]}
        return found


@cache
def _templates() -> Environment:
    loader = PackageLoader("tl_experiments.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _policy(css: str, js: str) -> str:
    """Nothing from outside, and no style or script but these two."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _title(runs: Sequence[FinishedRun]) -> str:
    sweeps = dict.fromkeys(run.folder.absolute().parent.name for run in runs)
    return ", ".join(sweeps) or "Comparison"


def _subtitle(comparison: Comparison, runs: Sequence[FinishedRun]) -> str:
    datasets = len(comparison.verdicts)
    lost = f", {plural(len(comparison.lost_jobs), 'job')} lost" if comparison.lost_jobs else ""
    return f"{plural(datasets, 'dataset')}, {plural(len(comparison.rows), 'arm')}, {plural(len(runs), 'run')}{lost}"


def _verdict(group: Group, comparison: Comparison, styles: Mapping[Arm, Style]) -> dict[str, Any]:
    dataset = group.rows[0].arm.dataset
    verdict = next(verdict for verdict in comparison.verdicts if verdict.dataset == dataset)
    row = next(row for row in group.rows if row.arm == verdict.recommended)
    test, gain = row.test_accuracy, row.transfer_gain
    numbers = [(share(test.mean), f"test accuracy {interval(test, of_share=True)}".rstrip())]
    if gain is not None:
        numbers.append((signed(gain.mean), f"over from_scratch {interval(gain)}".rstrip()))
    numbers += [
        (count(row.trained_parameters), f"of {count(row.total_parameters)} parameters trained"),
        (seconds(row.wall_clock_s), "a run"),
    ]
    return {
        "dataset": dataset, "key": key(styles[row.arm]), "arm": group.names[row.arm], "numbers": numbers,
        "sentence": verdict.sentence,
    }  # fmt: skip


def _block(title: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """Figures side by side over the legend that they share."""
    legend = [(label, f"c{style.colour}", key(style)) for label, style in figures[0].legend]
    drawn = [{"title": figure.title, "about": figure.about, "svg": draw(figure)} for figure in figures]
    return {"title": title, "figures": drawn, "legend": legend, "kind": "three" if len(drawn) > 2 else "two"}


def _overview(comparison: Comparison, styles: Mapping[Arm, Style]) -> dict[str, Any] | None:
    if comparison.overview is None:
        return None
    return {
        "block": _block(
            "", [draw_one(comparison.overview, styles) for draw_one in (average_ranks, interquartile_means)]
        ),
        "rows": standing_rows(comparison.overview),
        "sentence": overview_sentence(comparison.overview),
    }


def _dataset(anchor: str, group: Group, comparison: Comparison, album: _Album) -> dict[str, Any]:
    found, left_out = arm_details(group)
    return {
        "anchor": anchor,
        "name": group.rows[0].arm.dataset,
        "blocks": [_block(title, figures) for title, figures in dataset_figures(group)],
        "contrasts": contrasts(group, comparison),
        "arms": [_arm(each, group, album) for each in found],
        "more_arms": f"{plural(left_out, 'arm')} more: their predictions stand in their folders." if left_out else "",
    }


def _arm(each: ArmDetail, group: Group, album: _Album) -> dict[str, Any]:
    style, detail = group.styles[each.row.arm], each.detail
    table, note = class_rows(detail, whole=each.in_full)
    worst: list[dict[str, Any]] = []
    if each.in_full:
        taken = album.of(group.runs[each.row.arm][0], [one.item for one in detail.worst])
        worst = [_worst(one, taken.get(one.item, {})) for one in detail.worst]
    return {
        "key": key(style),
        "name": group.names[each.row.arm],
        "summary": f"test accuracy {share(each.row.test_accuracy.mean)}, "
        f"calibration error of the pooled runs {share(detail.calibration.error)}",
        "block": _block("", each.figures),
        "pairs": pair_rows(detail),
        "by_class": table,
        "by_class_caption": f"By class, {plural(detail.runs, 'run')} together{note}",
        "absent": f"Without an image, and so in no mean: {', '.join(detail.absent)}." if detail.absent else "",
        "worst": worst,
    }


def _worst(one: WorstPrediction, picture: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "picture": "", "width": 0, "height": 0, **picture, "item": one.item, "true": one.true,
        "predicted": one.predicted, "confidence": f"{one.confidence:.2f}",
        "alt": f"{one.item}: {one.true} taken for {one.predicted}",
        "missed": f"missed by {one.missed} of {one.runs} runs" if one.runs > 1 else "",
    }  # fmt: skip
