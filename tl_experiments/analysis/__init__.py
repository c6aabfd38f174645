"""From the records of a sweep to a comparison: table, intervals, transfer gain, verdict. Reads what runs left only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tl_experiments.analysis.compare import Evidence, compare, evidence
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.terminal import show

if TYPE_CHECKING:
    from tl_experiments.analysis.comparison import compare_records

__all__ = ["Comparison", "Evidence", "compare", "compare_records", "evidence", "show"]


def __getattr__(name: str) -> Any:
    """Load on first use (PEP 562): a stored comparison is shown without numpy."""
    if name != "compare_records":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tl_experiments.analysis.comparison import compare_records

    return compare_records
