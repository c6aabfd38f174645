"""Who trains together with whom, what may not be asked of several devices, and what Lightning is not to find out."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.training.test_lr_range import config
from tl_experiments.errors import ConfigError
from tl_experiments.training.build import build
from tl_experiments.training.lr_range import range_test
from tl_experiments.training.parallel import prepared, share_of
from tl_experiments.training.randomness import seed_step
from tl_experiments.training.ranks import ALONE, Ranks, ranks_of, refuse_one_for_two
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
    what = rf"trainer.devices: 2 times trainer.num_nodes=1 is 2 processes, but {started} -> torchrun"
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


def test_synchronised_batchnorm_sees_each_image_once(tiny):
    """Three devices: of five images each has some, though one is single; with statistics of their own two work."""
    ddp = ["trainer=ddp", "trainer.devices=3", "trainer.batch_size=4", "freeze_strategy=full"]
    parts = build(tiny(*ddp))
    for options, parts_of_five in ([], [3, 2, 3]), (["trainer.sync_batchnorm=true"], [2, 2, 1]):
        trainer = tiny(*ddp, *options).trainer
        shares = [share_of(trainer, parts, Ranks(rank, rank, 3)) for rank in range(3)]
        assert [len(range(5)[share.part(5)]) for share in shares] == parts_of_five
    for n, note in (
        (3, "An epoch has a batch of 2 images for 3 devices: BatchNorm counted some of them twice."),
        (4, ""),
    ):
        trainer = tiny(*ddp, "trainer.sync_batchnorm=true", f"trainer.batch_size={n}").trainer
        notes = prepared(trainer, parts, "gpu").notes[len(parts.notes) :]
        assert " ".join(notes) == note


def test_two_processes_on_one_gpu_are_named():
    """As under torchrun on a machine with fewer GPUs than processes, each of which is shown the same one."""
    store = torch.distributed.HashStore()
    for rank, gpu in enumerate(["GPU-a", "GPU-b", "GPU-a"]):
        store.set(f"gpu {rank}", gpu)
    with pytest.raises(ConfigError, match=r"trainer.devices: 2 of 3 processes have one GPU \(GPU-a\) -> no more"):
        refuse_one_for_two(store, Ranks(2, 2, 3), "GPU-a")
    refuse_one_for_two(store, Ranks(2, 2, 3), "GPU-c")


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
