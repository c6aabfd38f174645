"""A store on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tl_experiments.cache.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", 10**9)
