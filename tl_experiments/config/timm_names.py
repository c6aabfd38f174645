"""The names of timm's models, read from its source: importing timm takes seconds, and a typo must be told at once."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from tl_experiments.config.typed import did_you_mean
from tl_experiments.errors import ConfigError

_MODEL = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def timm_names() -> tuple[str, ...]:
    """Every model name that the installed timm registers, sorted; empty where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return ()
    files = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return tuple(sorted({name for path in files for name in _MODEL.findall(path.read_text(encoding="utf-8"))}))


def check_backbone_name(name: str) -> None:
    """Refuse a name that timm does not know; a tag after a dot and names with a source (``hf-hub:``) pass."""
    known = timm_names()
    if known and ":" not in name and name.split(".")[0] not in known:
        raise ConfigError("backbone.name", f"timm has no model {name!r}", did_you_mean(name, known))
