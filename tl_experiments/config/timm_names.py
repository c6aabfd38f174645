"""Names of timm's models and optimizers, read from its source: importing timm takes seconds, a typo is told at once."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from tl_experiments.config.typed import did_you_mean
from tl_experiments.errors import ConfigError

_MODEL = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


_OPTIMIZER = re.compile(r"(?:OptimInfo|register_alias)\(\s*(?:name=)?'(\w+)'")


def _sources(pattern: str) -> list[Path]:
    spec = importlib.util.find_spec("timm")
    return [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob(pattern))


@cache
def timm_optimizers() -> tuple[str, ...]:
    """Every optimizer name that the installed timm registers, sorted; empty where timm is not installed."""
    files = _sources("optim/_optim_factory.py")
    return tuple(sorted({name for path in files for name in _OPTIMIZER.findall(path.read_text(encoding="utf-8"))}))


def check_optimizer_name(name: str) -> None:
    """Refuse an optimizer that timm does not know."""
    known = timm_optimizers()
    if known and name not in known:
        raise ConfigError("optimizer.algorithm", f"timm has no optimizer {name!r}", did_you_mean(name, known))


@cache
def timm_names() -> tuple[str, ...]:
    """Every model name that the installed timm registers, sorted; empty where timm is not installed."""
    files = _sources("models/*.py")
    return tuple(sorted({name for path in files for name in _MODEL.findall(path.read_text(encoding="utf-8"))}))


def check_backbone_name(name: str) -> None:
    """Refuse a name that timm does not know; a tag after a dot and names with a source (``hf-hub:``) pass."""
    known = timm_names()
    if known and ":" not in name and name.split(".")[0] not in known:
        raise ConfigError("backbone.name", f"timm has no model {name!r}", did_you_mean(name, known))
