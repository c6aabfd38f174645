"""From the command line to a typed config, without importing torch."""

from tl_experiments.config.compose import compose
from tl_experiments.config.schema import TrainConfig

__all__ = ["TrainConfig", "compose"]
