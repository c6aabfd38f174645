"""Who trains together with whom, what may not be asked of several devices, and what Lightning is not to find out."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.training.test_lr_range import config
from tl_experiments.errors import ConfigError
from tl_experiments.training.lr_range import range_test
from tl_experiments.training.randomness import seed_step
from tl_experiments.training.ranks import ALONE, ranks_of
from tl_experiments.training.run import run

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}


@pytest.fixture
def variables(monkeypatch):
    """Sets them."""

    def give(values):
        for key, value in values.items():
            monkeypatch.setenv(key, value)

    return give


def test_ranks_are_read_from_the_variables_of_torchrun(tiny, variables):
    variables(TORCHRUN)
    ranks = ranks_of(tiny("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2").trainer)
    assert (ranks.rank, ranks.local_rank, ranks.world_size, ranks.first) == (5, 1, 8, False)
    assert ranks_of(tiny().trainer) == ALONE  # a trainer of one device is none of their business


@pytest.mark.parametrize(
    ("given", "started"), [(TORCHRUN, "8 were started"), ({}, "1 was started"), ({"RANK": "x"}, "1 was started")]
)
def test_another_number_of_processes_than_the_trainer_wants(tiny, variables, given, started):
    variables(given)
    what = rf"trainer.devices: 2 on each of 1 nodes, which is 2 processes, but {started} -> torchrun"
    with pytest.raises(ConfigError, match=what):
        run(tiny("trainer=ddp"))


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["trainer.sync_batchnorm=true"], r"trainer.sync_batchnorm: true, but torch .* BatchNorms train here -> false"),
        (
            ["trainer.batch_size=1"],
            r"trainer.batch_size: 1 over all 1 devices, and BatchNorm trains on 2 or more",
        ),
    ],
)
def test_batchnorm_that_trains_and_what_it_needs(tiny, tmp_path, overrides, what):
    ddp = ["trainer=ddp", "trainer.devices=1", *overrides]
    with pytest.raises(ConfigError, match=what):
        run(tiny(*ddp, "freeze_strategy=full"), tmp_path)
    run(tiny(*ddp, "freeze_strategy=full", "freeze_strategy.norm_stats=frozen", "trainer.max_epochs=1"), tmp_path)


def test_each_process_drops_other_units_and_the_first_those_of_one_process():
    drawn = {}
    for rank in (None, 0, 1, 2):
        seed_step(3, 7, torch.device("cpu"), *([] if rank is None else [rank]))
        drawn[rank] = tuple(torch.rand(4).tolist())
    assert drawn[None] == drawn[0]
    assert len(set(drawn.values())) == 3


def test_a_solved_head_is_refused_before_anything_is_started(tiny):
    what = "head: ridge, which is solved on one device in seconds, together with trainer=ddp"
    with pytest.raises(ConfigError, match=what):
        tiny("trainer=ddp", "head=ridge", "augmentation=none")


def test_one_device_is_no_special_case(tiny, tmp_path):
    options = ["freeze_strategy=lp_ft", "trainer.max_epochs=4"]
    alone = run(tiny(*options), tmp_path / "default")
    ddp = run(tiny(*options, "trainer=ddp", "trainer.devices=1"), tmp_path / "ddp")
    assert ddp.metrics["test"] == pytest.approx(alone.metrics["test"], rel=1e-5)
    assert ddp.learning_rate == alone.learning_rate
    assert not torch.distributed.is_initialized()


def test_lightning_neither_sees_slurm_nor_takes_its_signals(tiny, tmp_path, monkeypatch, variables):
    """It would refuse two tasks, and answer USR1 by putting the job back into the queue."""
    variables({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "2"})
    before = signal.getsignal(signal.SIGUSR1)
    handlers = []
    monkeypatch.setattr(
        "tl_experiments.training.module.TransferModule.on_train_batch_end",
        lambda *_: handlers.append(signal.getsignal(signal.SIGUSR1)),
    )
    run(tiny("freeze_strategy=full", "trainer.max_epochs=1"), tmp_path)
    assert set(handlers) == {before}


def test_a_range_test_sees_the_batch_of_all_devices():
    """And each of its images once, though in parts as large as a device's."""
    lr = ["lr_range.steps=10", "freeze_strategy=full", "freeze_strategy.norm_stats=frozen", "dataset.shots=4"]
    one = range_test(config(*lr, "trainer.batch_size=16"))
    four = range_test(config(*lr, "trainer=ddp", "trainer.devices=4", "trainer.batch_size=4"))
    assert four.losses == pytest.approx(one.losses, rel=1e-4)
