"""Several devices: what a step sees, at which rate, and which job it is."""

from __future__ import annotations

import pytest

from tl_experiments.config import compose
from tl_experiments.errors import ConfigError
from tl_experiments.training.identity import job_id


def test_batch_and_rate_grow_with_the_devices_as_stated():
    """Goyal et al. (2017), section 2.1: when the minibatch is multiplied by k, multiply the learning rate by k."""
    one = compose(["trainer.batch_size=32"])
    eight = compose(["trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2", "trainer.batch_size=32"])
    assert (eight.trainer.world_size, eight.trainer.effective_batch_size) == (8, 256)
    assert eight.base_lr() == pytest.approx(8 * one.base_lr())
    given = compose(["trainer=ddp", "trainer.devices=4", "optimizer.lr=0.01"])
    assert given.base_lr() == 0.01

    divided = compose(["trainer=ddp", "trainer.devices=4", "trainer.batch_scaling=none", "trainer.batch_size=32"])
    assert (divided.trainer.effective_batch_size, divided.base_lr()) == (32, one.base_lr())


def test_devices_are_part_of_a_job_and_nodes_are_not():
    def job(*options):
        return job_id(compose(["trainer=ddp", *options]))

    assert job("trainer.devices=4", "trainer.num_nodes=2") == job("trainer.devices=8")
    assert len({job("trainer.devices=4"), job("trainer.devices=8"), job_id(compose([]))}) == 3
    assert job("executor=slurm", "executor.time_min=5") == job()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer=ddp", "trainer.devices=0"], r"trainer.devices: got 0, expected 1 or more"),
        (["trainer.devices=2"], r"trainer.devices: not an option .* -> only with trainer=ddp or fsdp"),
        (["trainer=ddp", "trainer.on_out_of_memory=accumulate"], r"trainer.on_out_of_memory: got accumulate, expected"),
        (
            ["trainer=ddp", "trainer.devices=8", "trainer.batch_size=4", "trainer.batch_scaling=none"],
            r"trainer.batch_size: got 4, expected 8 or more, one a device",
        ),
        (["executor=slurm", "executor.time_min=0"], r"executor.time_min: got 0, expected 1 or more"),
        (["executor=slurm", "executor.setup=module load cuda"], r"executor.setup: got 'module load cuda', expected a"),
        (["executor=ray", "executor.gpus_per_task=1.5"], r"executor.gpus_per_task: got 1.5, expected a fraction, or a"),
        (["executor=kubernetes"], r"executor: unknown choice 'kubernetes' -> choose one of local, ray, slurm"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)
