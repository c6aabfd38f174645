"""Numbers and names as text, the same in the verdict, the table on the terminal and the files."""

from __future__ import annotations

from collections.abc import Sequence

from tl_experiments.analysis.statistics import Estimate


def short(text: str, limit: int) -> str:
    """At most ``limit`` characters, the cut marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def share(value: float) -> str:
    """An accuracy or another number near 1, to 3 decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign, to 3 decimals."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\N{MINUS SIGN}")


def interval(estimate: Estimate, *, of_share: bool = False) -> str:
    """``[low, high]`` to 3 decimals, empty where there is none; an interval of a share is cut to [0, 1]."""
    if estimate.low is None or estimate.high is None:
        return ""
    if of_share:
        return f"[{share(max(0.0, estimate.low))}, {share(min(1.0, estimate.high))}]"
    return f"[{signed(estimate.low)}, {signed(estimate.high)}]".replace("+", "")


def span(low: float | None, high: float | None) -> str:
    """``[low, high]`` of shares to 3 decimals, empty where there is none."""
    return "" if low is None or high is None else f"[{share(low)}, {share(high)}]"


def with_margin(estimate: Estimate, *, sign: bool = False) -> str:
    """``0.962 ±0.011``, or the mean alone where there is no interval."""
    mean = signed(estimate.mean) if sign else share(estimate.mean)
    return mean if estimate.margin is None else f"{mean} ±{share(estimate.margin)}"


def p_text(p_value: float) -> str:
    """``p=0.04``, ``p=0.004`` or ``p<0.001``."""
    return f"p{p_sign(p_value)}"


def p_sign(p_value: float) -> str:
    """``=0.04`` or ``<0.001``: a p value with its relation."""
    if p_value < 0.001:
        return "<0.001"
    # Three digits around the threshold: 0.049 must not read as 0.05.
    return f"={p_value:.3f}" if p_value < 0.1 else f"={p_value:.2f}"


def count(number: float) -> str:
    """A number of parameters to 3 digits: ``11.2M``, ``513k``, ``650``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,950 would round to 1000.0k, so the next unit starts a little below its size.
        if number >= size * 0.9995:
            value = number / size
            return f"{value:.0f}{unit}" if value >= 99.95 else f"{value:.1f}{unit}"
    return f"{number:.0f}"


def seconds(value: float) -> str:
    """A duration: ``4.1 s``, ``312 s``, ``2.4 h``."""
    if value >= 7200:
        return f"{value / 3600:.1f} h"
    return f"{value:.0f} s" if value >= 99.95 else f"{value:.1f} s"


def memory(size_bytes: float) -> str:
    """Bytes in binary units: ``913 MiB``, ``12.4 GiB``."""
    if size_bytes >= 1023.5 * 2**20:
        return f"{size_bytes / 2**30:.1f} GiB"
    return f"{size_bytes / 2**20:.0f} MiB"


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1]))) if items else ""


def plural(number: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
