"""Several processes on GPUs: NCCL, and BatchNorm over all of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.training.processes import processes, record_of, weights_after
from tests.training.watching import distance
from tl_experiments.training.run import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

GPU = ["trainer.accelerator=gpu", "trainer.precision=32-true", "trainer.memory_format=contiguous"]
SGD = ["optimizer=sgd", "optimizer.lr=0.01", "trainer.batch_size=8", "freeze_strategy=full"]
SYNCHRONISED = ["trainer=ddp", "trainer.batch_scaling=none", "trainer.sync_batchnorm=true"]


@pytest.mark.parametrize("net", ["test_resnet", "test_efficientnet"])  # BatchNorm2d, BatchNormAct2d
@pytest.mark.parametrize("strategy", ["full", "lp_ft"])
def test_synchronised_batchnorm_keeps_names_and_freezing(tiny, tmp_path, net, strategy):
    """On one device; the freeze audit runs, and the checkpoint is the same model's."""
    options = [*GPU, f"backbone.name={net}", f"freeze_strategy={strategy}", "trainer.max_epochs=4", "backbone=timm"]
    alone = run(tiny(*options), tmp_path / "default")
    ddp = run(tiny(*options, *SYNCHRONISED, "trainer.devices=1"), tmp_path / "ddp")
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("default", "ddp"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    assert ddp.trained_parameters == alone.trained_parameters


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_gpus_with_live_batchnorm_train_what_one_does(tiny, tmp_path):
    options = [*GPU, *SGD, "trainer.max_epochs=2"]
    alone = weights_after(tiny(*options), tmp_path / "one", 4)
    with processes(2) as pair:
        answers = pair.do(weights_after, tiny(*options, *SYNCHRONISED), tmp_path / "two", 4)
        (record, _), _ = pair.do(record_of, tiny(*GPU, "trainer=ddp", "freeze_strategy=lp_ft"), tmp_path / "own")
    expected = {name: torch.from_numpy(array) for name, array in alone[1].items()}
    for _, weights, _ in answers:
        assert distance({name: torch.from_numpy(array) for name, array in weights.items()}, expected) <= 1e-4
    assert any(note.startswith("BatchNorm trained with each device's own statistics") for note in record.notes)
