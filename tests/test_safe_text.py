"""What may be shown and kept: no secrets, and nothing that steers a terminal or a spreadsheet."""

from __future__ import annotations

import pytest

from tl_experiments.safe_text import redacted, redacted_text

CANARY = "s3cret-canary-0123"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("tracker.mlflow.uri=http://user:pw@host:5000/x", "tracker.mlflow.uri=http://***@host:5000/x"),
        ("tl train backbone.kwargs.api_token=abc seed=0", "tl train backbone.kwargs.api_token=*** seed=0"),
        ("https://host/x?page=2&token=abc&size=3", "https://host/x?page=2&token=***&size=3"),
        (f"401 for {CANARY}!", "401 for ***!"),
        ("backbone.kwargs.num_tokens=3 class_token=true monkey=abc", None),
        ("dataset.root=/home/anna/photos", None),
        ("cost@noon http://host/x@y", None),
    ],
)
def test_texts(text, safe, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    assert redacted_text(text) == (text if safe is None else safe)


def test_nested_values():
    given = {"kwargs": {"api_key": "abc", "class_token": True, "keypoints": "yes"}, "uris": ["http://a:b@c", None, 3]}
    safe = {"kwargs": {"api_key": "***", "class_token": True, "keypoints": "yes"}, "uris": ["http://***@c", None, 3]}
    assert redacted(given) == safe


def test_the_working_directory_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("OLDPWD", str(tmp_path / "before"))
    monkeypatch.setenv("DB_PWD", "correct horse")
    assert redacted_text(f"dataset.root={tmp_path}/before/photos") == f"dataset.root={tmp_path}/before/photos"
    assert redacted_text("it is correct horse") == "it is ***"
