"""Less memory, the same training: accumulation, gradient checkpointing, and a step that did not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from tl_experiments.errors import ConfigError
from tl_experiments.training.build import build
from tl_experiments.training.memory import split_batch
from tl_experiments.training.model import TransferModel
from tl_experiments.training.run import run

# LayerNorm only: what a step does not depend on which images are computed together
VIT = ["backbone=timm", "backbone.name=test_vit", "backbone.preprocessing.image_size=160", "freeze_strategy=full"]


def weights(folder):
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, tmp_path, parts):
    """20 images in batches of 8: the last one has 4, and its parts are smaller or fewer."""
    cfg = tiny(*VIT, "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=1")
    whole = run(cfg, tmp_path / "whole")
    accumulated = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, accumulation=parts))
    record = run(accumulated, tmp_path / "parts")
    assert record.accumulation == parts
    assert record.metrics["val"]["nll"] == pytest.approx(whole.metrics["val"]["nll"], rel=1e-5)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert max((one[name] - two[name]).norm() / one[name].norm().clamp(min=1e-3) for name in one) < 1e-5


def test_parts_differ_by_one_at_most():
    batch = {"image": torch.arange(11), "label": torch.arange(11), "index": torch.arange(11)}
    assert [len(part["label"]) for part in split_batch(batch, 4)] == [3, 3, 3, 2]
    assert [len(part["label"]) for part in split_batch(batch, 20)] == [1] * 11
    assert torch.equal(torch.cat([part["image"] for part in split_batch(batch, 4)]), batch["image"])


@pytest.fixture
def small_memory(monkeypatch):
    """A machine whose memory holds a training step of three images: more raise what CUDA raises."""
    largest = []
    forward = TransferModel.forward

    def limited(self, image):
        if self.training and len(image) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.training:
            largest.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(TransferModel, "forward", limited)
    return largest


def test_a_step_that_does_not_fit_is_done_again_in_parts(tiny, tmp_path, small_memory, caplog):
    cfg = tiny(*VIT, "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=1")
    record = run(cfg, tmp_path / "small")
    assert record.accumulation == 4
    assert max(small_memory) == 2
    assert record.notes == ("Memory ran out: batches of 8 were computed in 4 parts.",)
    assert "out of memory at step 1: batches of 8 are computed in 4 parts from here on" in caplog.text
    parts = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, accumulation=4))
    run(parts, tmp_path / "from_the_start")
    one, two = weights(tmp_path / "small"), weights(tmp_path / "from_the_start")
    assert all(torch.equal(one[name], two[name]) for name in one)  # as if it had been asked for


def test_out_of_memory_can_end_the_run(tiny, tmp_path, small_memory):
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny(*VIT, "trainer.on_out_of_memory=fail"), tmp_path)


def test_what_does_not_fit_one_by_one_ends_the_run(tiny, tmp_path, monkeypatch):
    def never(self, image):
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(len(image), 10)

    monkeypatch.setattr(TransferModel, "forward", never)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny(), tmp_path)


@pytest.mark.parametrize("strategy", ["full", "last_n_blocks"])
@pytest.mark.parametrize("net", ["test_vit", "test_resnet"])
def test_gradient_checkpointing_saves_activations_and_changes_no_gradient(tiny, net, strategy):
    size = 160 if net == "test_vit" else 32

    def step(checkpointing):
        parts = build(
            tiny(
                "backbone=timm", f"backbone.name={net}", f"backbone.preprocessing.image_size={size}",
                f"freeze_strategy={strategy}", f"trainer.gradient_checkpointing={checkpointing}",
            )
        )  # fmt: skip
        parts.model.begin(parts.phases[0].phase)
        parts.model.train()
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        batch = next(iter(parts.data.eval_loader("val")))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = parts.objective.loss(parts.model, batch)
        kept = saved
        loss.backward()
        return kept, {name: p.grad for name, p in parts.model.named_parameters() if p.requires_grad}

    (plain_kept, plain), (kept, checkpointed) = step("false"), step("true")
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
    if strategy == "full":
        assert kept < 0.7 * plain_kept


def test_a_net_without_gradient_checkpointing_is_named(tiny):
    with pytest.raises(ConfigError, match=r"trainer.gradient_checkpointing: timm has none for DLA"):
        build(
            tiny(
                "backbone=timm", "backbone.name=dla46x_c", "backbone.preprocessing.image_size=64",
                "trainer.gradient_checkpointing=true",
            )
        )  # fmt: skip


def test_channels_last_reaches_weights_and_activations(tiny, tmp_path):
    parts = build(tiny("trainer.memory_format=channels_last"))
    convolutions = [p for p in parts.model.parameters() if p.ndim == 4 and p.shape[-1] > 1 and p.shape[1] > 1]
    assert convolutions
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    seen = []
    parts.model.backbone.net.layer1.register_forward_hook(lambda _module, _args, output: seen.append(output))
    plain = build(tiny())
    image = next(iter(parts.data.eval_loader("val")))["image"]
    parts.model.eval(), plain.model.eval()
    torch.testing.assert_close(parts.model(image), plain.model(image), rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert run(tiny("trainer.memory_format=channels_last", "freeze_strategy=full"), tmp_path).last_step == 6
