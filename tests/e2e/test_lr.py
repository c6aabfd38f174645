"""``tl lr`` from the command line: rows, files, and what it answers without a rule."""

from __future__ import annotations

import json

import pytest

from tests.conftest import TINY
from tl_experiments.cli import main


def test_lr_finds_rates_and_names_its_files(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = [*TINY, "lr_range.steps=12", "name=rates"]
    with pytest.raises(SystemExit) as end:
        main(["lr", "-m", *tiny, "freeze_strategy=full,lp_ft", "optimizer=adamw,sgd"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    rows = [line.split()[:2] for line in out.splitlines()[1:5]]
    assert [row[0] for row in rows] == ["full,", "full,", "lp_ft,", "lp_ft,"]
    content = json.loads((tmp_path / "outputs" / "lr" / "rates" / "lr.json").read_text())
    assert [one["rule"] for one in content["suggestions"]] == [0.0003, 0.003, 0.003, 0.03]
    assert (tmp_path / "outputs" / "lr" / "rates" / "lr.png").is_file()
    with pytest.raises(SystemExit) as end:
        main(["train", "lr_range.steps=12"])
    assert capsys.readouterr().err.strip().endswith("lr_range.steps: an option of the range test -> tl lr")
    with pytest.raises(SystemExit) as end:
        main(["lr", *tiny, "optimizer=timm", "optimizer.algorithm=lamb"])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["feature_extraction", "-"]
