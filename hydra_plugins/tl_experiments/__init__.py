"""Hydra finds plugins only here; everything they do is in ``tl_experiments.sweeps``."""

from hydra_plugins.tl_experiments.plugins import TLLauncher, TLSweeper

__all__ = ["TLLauncher", "TLSweeper"]
