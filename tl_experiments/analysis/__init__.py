"""From the records of a sweep to a comparison: table, intervals, transfer gain, verdict. Reads records only."""

from tl_experiments.analysis.compare import compare
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.terminal import show

__all__ = ["Comparison", "compare", "compare_records", "show"]
