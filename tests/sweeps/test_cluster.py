"""What holds on every cluster, shown on processes of this machine."""

from __future__ import annotations

import json

import pytest

from tests.sweeps import faulty
from tests.sweeps.processes import ON_PROCESSES, Processes, put_in_place
from tests.sweeps.test_sweep import faulty_job, job, metrics
from tl_experiments.sweeps.sweep import run_sweep


@pytest.fixture
def cluster(monkeypatch):
    found = Processes()
    put_in_place(found, monkeypatch.setattr)
    return found


def test_the_jobs_of_a_cluster_end_like_those_of_this_machine(tiny, tmp_path, cluster):
    def jobs(*options):
        return [
            *(job(tiny(f"freeze_strategy={strategy}", *options)) for strategy in ("feature_extraction", "full")),
            faulty_job(faulty.Killed, tiny("freeze_strategy=full", "seed=1", *options)),
            faulty_job(faulty.Raises, tiny("freeze_strategy=full", "seed=2", *options)),
        ]

    here = run_sweep(jobs("executor.threads_per_job=1"), tmp_path / "here", "here")
    there = run_sweep(jobs(*ON_PROCESSES), tmp_path / "there", "there")

    assert cluster.submissions == 4
    assert (there.ok, len(there.bad)) == (here.ok, len(here.bad)) == (2, 2)
    assert metrics(tmp_path / "there", jobs()[:2]) == metrics(tmp_path / "here", jobs()[:2])
    assert [(entry.state, entry.cause) for entry in there.bad] == [
        ("failed", "gone"),
        ("failed", "RuntimeError: a bug"),
    ]
    assert json.loads((tmp_path / "there" / "sweep.json").read_text())["tasks"] == []
