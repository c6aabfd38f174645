"""Every experiment file runs, small, and its sweep comes out as the file says."""

from __future__ import annotations

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from PIL import Image

from tl_experiments.config import compose
from tl_experiments.config.compose import choices, conf_dir
from tl_experiments.sweeps.expand import compose_jobs, expand
from tl_experiments.sweeps.jobs import make_job
from tl_experiments.training.run import run

SMALL = ["backbone=test_resnet", "backbone.weights=random", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
VERB = {"letters_source": "pretrain"}
OWN = {"letters_source": ["dataset.images_per_class=10"], "few_labels": ["dataset.shots=2"]}
OF_A_FOLDER = ("photos", "few_labels")
JOBS = {
    "letters_source": 1,
    "digits_5_shots": 25,  # 4 strategies, one of them at two depths, 5 seeds
    "digits_20_shots": 40,  # the difference is smaller: 8 seeds
    "photos": 36,  # 4 strategies, 3 rates, 3 seeds
    "few_labels": 54,  # 6 strategies, 3 rates, 3 seeds; of which 30 run, the rates being tuned on one seed
}


@pytest.fixture
def folder(tmp_path):
    """Six images in each of two classes."""
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", sorted(choices("experiment")))
def test_it_runs_small(name, folder, tmp_path):
    data = [f"dataset.root={folder}"] if name in OF_A_FOLDER else []
    overrides = [f"experiment={name}", *SMALL, *OWN.get(name, []), *data, f"output_dir={tmp_path}"]
    record = run(compose(overrides, verb=VERB.get(name, "train")), tmp_path / "run")
    assert 0 <= record.metrics["test"]["accuracy"] <= 1


@pytest.mark.parametrize("name", sorted(choices("experiment")))
def test_its_sweep_has_the_jobs_that_it_says(name, folder, tmp_path):
    verb = VERB.get(name, "train")
    arguments = [f"experiment={name}", "backbone.weights=random"]
    arguments += [f"dataset.root={folder}"] if name in OF_A_FOLDER else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration(verb, arguments, run_mode=RunMode.MULTIRUN)
        composed = compose_jobs(loader, verb, [], expand(loader, dict(master.hydra.sweeper.params), arguments))
    assert len({make_job(*one).id for one in composed}) == JOBS[name]
