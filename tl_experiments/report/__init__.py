"""A comparison to read, to print and to send: ``page.py`` makes one HTML file, ``files.py`` figures as PNG and SVG."""

from __future__ import annotations

from tl_experiments.analysis.results import Comparison

REPORT_VERSION = 1  # raised whenever a stored report would come out otherwise


def stamp(comparison: Comparison) -> str:
    """What a report is made from: one that bears the same need not be made again."""
    return f"{comparison.key}-{REPORT_VERSION}"
