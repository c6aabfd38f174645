"""What a task asks of Ray, what of that a cluster has, and what Ray says of it; without Ray."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys

import pytest

from tl_experiments.errors import ConfigError, UserError
from tl_experiments.sweeps import ray_cluster
from tl_experiments.sweeps.executors import check_executor, cluster_of, places
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ray_cluster import RayCluster
from tl_experiments.sweeps.ray_resources import Offer, check_demand, demand
from tl_experiments.sweeps.ray_task import CANCELLED, Actor, end_process
from tl_experiments.training.caching import hold_bytes

CPU_NODE, GPU_NODE = {"CPU": 8.0, "memory": 64e9}, {"CPU": 16.0, "memory": 64e9, "GPU": 4.0, "big": 1.0}
WITHOUT, WITH = Offer("ray a:1", (CPU_NODE,)), Offer("ray a:1", (CPU_NODE, GPU_NODE))
DDP = ("trainer=ddp", "trainer.devices=2")


@pytest.fixture
def on_ray(tiny):
    return lambda *options: tiny("executor=ray", "trainer.accelerator=auto", *options)


def asks(config, offer=WITH):
    return demand(config.executor, config.trainer, offer)


@pytest.mark.parametrize(
    ("options", "offer", "wanted"),
    [
        ((), WITH, {"CPU": 2, "GPU": 1}),
        ((), WITHOUT, {"CPU": 2}),
        ((), Offer("ray a:1", (CPU_NODE,), grows=True), {"CPU": 2, "GPU": 1}),
        (("trainer.accelerator=gpu",), WITHOUT, {"CPU": 2, "GPU": 1}),
        (("trainer.accelerator=cpu",), WITH, {"CPU": 2}),
        (("trainer.accelerator=cpu", "executor.gpus_per_task=1"), WITH, {"CPU": 2}),
        (("executor.gpus_per_task=0",), WITH, {"CPU": 2}),
        (("executor.gpus_per_task=0.25", "executor.cpus_per_task=1"), WITH, {"CPU": 1, "GPU": 0.25}),
        (("executor.memory_gb=3", "executor.resources={big: 0.5}"), WITHOUT, {"CPU": 2, "memory": 3e9, "big": 0.5}),
        (DDP, WITH, {"CPU": 4, "GPU": 2}),
        ((*DDP, "executor.gpus_per_task=0"), WITH, {"CPU": 4}),
    ],
)
def test_what_a_task_asks_for(on_ray, options, offer, wanted):
    assert asks(on_ray(*options), offer) == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (*DDP, "trainer.num_nodes=2"),
            "trainer.num_nodes: 2, expected 1 with executor=ray -> executor=slurm, or torchrun",
        ),
        ((*DDP, "executor.gpus_per_task=0.5"), "executor.gpus_per_task: 0.5, expected 2, one a device of the trainer"),
    ],
)
def test_tasks_that_ray_does_not_run(on_ray, options, said):
    with pytest.raises(ConfigError) as caught:
        asks(on_ray(*options))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ({"CPU": 2}, 4 + 8),
        ({"CPU": 2, "GPU": 1}, 4),
        ({"CPU": 1, "GPU": 0.25}, 16),
        ({"CPU": 1, "GPU": 0.1}, 16),  # of 40, its cores take 16
        ({"CPU": 3}, 2 + 5),
        ({"CPU": 1, "memory": 30e9}, 2 + 2),
        ({"CPU": 1, "big": 1}, 1),
    ],
)
def test_how_many_run_at_once(wanted, number):
    assert WITH.at_once(wanted) == number
    check_demand(wanted, WITH)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"CPU": 17}, "a task asks for 17 CPU, and no node of ray a:1 has more than 16 CPU -> ask for less"),
        (
            {"CPU": 2, "GPU": 8, "memory": 65e9},
            "asks for 2 CPU, 8 GPU, 65 GB of memory, and no node of ray a:1 has more than 4 GPU, 64 GB of memory",
        ),
        ({"CPU": 1, "tpu": 1}, "no node of ray a:1 has more than 0 tpu"),
    ],
)
def test_a_task_that_would_wait_for_ever_is_refused(wanted, said, caplog):
    with pytest.raises(UserError) as caught:
        check_demand(wanted, WITH)
    assert said in str(caught.value)
    check_demand(wanted, Offer("ray a:1", WITH.nodes, grows=True))
    assert said.removesuffix(" -> ask for less") in caplog.text


def test_no_node_alone_has_it():
    apart = Offer("ray a:1", ({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}))
    with pytest.raises(UserError, match="no node of ray a:1 has all of it"):
        check_demand({"CPU": 4, "GPU": 1}, apart)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("executor.cpus_per_task=9999", "a task asks for 9999 CPU, and no node of a cluster on this machine has more"),
        ("executor.address=127.0.0.1:9", "127.0.0.1:9 cannot be used ([Errno 111] Connection refused)"),
        ("executor.address=ray://127.0.0.1:9", "ray://127.0.0.1:9 cannot be used ([Errno 111] Connection refused)"),
        (f"executor.temp_dir=/tmp/{'a' * 40}", f"/tmp/{'a' * 40} has 45 bytes, expected 40 at most for sockets"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_entered(tiny, option, said):
    config = tiny("executor=ray", option)
    with pytest.raises(UserError) as caught:
        check_executor([Job("x", (), config)])
    assert said in str(caught.value)


@pytest.mark.parametrize("address", ["nonsense", "http://a:1", "a:b", "ray://a"])
def test_an_address_has_a_form(tiny, address):
    with pytest.raises(ConfigError, match="expected host:port, ray://host:port, auto or null"):
        tiny("executor=ray", f"executor.address={address}")


def test_without_ray_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = tiny("executor=ray")
    said = r"executor=ray: Ray is not installed -> pip install 'tl-experiments\[ray\]'"
    with pytest.raises(ConfigError, match=said):
        check_executor([Job("x", (), config)])
    with pytest.raises(ConfigError, match=said):
        places(config.executor, config.trainer, 1, None)


def test_a_cluster_that_ended_with_its_command_is_not_opened_again():
    with pytest.raises(UserError, match="was started by the command and ends with it"):
        cluster_of(RayCluster(None).name)


@pytest.mark.parametrize(
    ("actor", "condition"),
    [
        (Actor("PENDING_CREATION", 0, "", 0), ("waiting", "", False)),
        (Actor("PENDING_CREATION", 7, "n", 0), ("running", "", False)),
        (Actor("RESTARTING", 7, "n", 1), ("running", "", False)),
        (Actor("DEAD", 7, "n", 0, "cancelled", outside=True), ("ended", "cancelled", True)),
        (Actor("DEAD", 7, "n", 1, "killed", ": memory?"), ("ended", "killed after 1 retry: memory?", False)),
        (Actor("DEAD", 7, "n", 3, "killed", ": memory?"), ("ended", "killed after 3 retries: memory?", False)),
        (None, ("ended", "the cluster does not know it any more", True)),
    ],
)
def test_what_becomes_of_an_actor(monkeypatch, actor, condition):
    monkeypatch.setattr(ray_cluster, "ask", lambda _function, _names: {"a": actor} if actor else {})
    found = RayCluster(None).conditions(["a"])["a"]
    assert (found.state, found.detail, found.outside) == condition


def test_tasks_that_share_a_gpu_share_its_memory(tiny, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80_000, 100_000))
    device = torch.device("cuda")
    assert hold_bytes(tiny("executor=ray", "executor.gpus_per_task=1"), device) == 40_000
    assert hold_bytes(tiny("executor=ray", "executor.gpus_per_task=0.25"), device) == 10_000


def test_a_silent_cluster_is_told_of_once_and_ends_nothing(caplog):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:  # nobody listens there afterwards
        address = f"127.0.0.1:{server.getsockname()[1]}"
    cluster = RayCluster(address)
    caplog.set_level(logging.WARNING, "tl_experiments")
    assert [cluster.conditions(["x/y/z"]) for _ in range(2)] == [{}, {}]
    (line,) = caplog.messages
    assert line.startswith(f"ray {address} does not answer")
    with pytest.raises(UserError, match=f"{address} cannot be used"):
        cluster.cancel(["x/y/z"])


def test_a_task_is_asked_to_end_without_ps_and_nobody_else(monkeypatch):
    pytest.importorskip("ray")
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    task, other = subprocess.Popen([*sleeper, "ray::RayTask.__init__"]), subprocess.Popen(sleeper)
    monkeypatch.setenv("PATH", "")
    try:
        assert end_process(task.pid)
        assert task.wait(10) == -CANCELLED
        assert not end_process(task.pid)
        assert not end_process(other.pid)
        assert other.poll() is None
    finally:
        task.kill()
        other.kill()
        other.wait()
