"""What a run minimises."""

from tl_experiments.objectives.supervised import SupervisedObjective, build_objective

__all__ = ["SupervisedObjective", "build_objective"]
