"""How a config class refuses a value."""

from __future__ import annotations

from tl_experiments.errors import ConfigError


def require(ok: bool, key: str, got: object, expected: str) -> None:
    """Raise the one-line error unless ``ok``; ``typed`` puts the path before ``key``."""
    if not ok:
        raise ConfigError(key, f"got {got}, expected {expected}", "give a value in that range")
