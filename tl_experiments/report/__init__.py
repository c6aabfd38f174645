"""A comparison to read, to print and to send: one HTML file, and its figures as PNG and SVG."""

from tl_experiments.report.page import Pictures, render, stamp

__all__ = ["Pictures", "render", "stamp"]
