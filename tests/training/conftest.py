"""Shared by tests of training."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Our log's lines, each once, though an earlier test may have set up logging as a command does."""
    logger = logging.getLogger("tl_experiments")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("INFO", "tl_experiments")
    return caplog
