"""Less memory, the same training: accumulation, gradient checkpointing, and a step that did not fit."""

from __future__ import annotations

import dataclasses
import json

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
    assert [len(part["label"]) for part in split_batch(batch, 4, 1)] == [3, 3, 3, 2]
    assert [len(part["label"]) for part in split_batch(batch, 20, 1)] == [1] * 11
    assert [len(part["label"]) for part in split_batch(batch, 20, 2)] == [3, 2, 2, 2, 2]
    assert len(split_batch(batch, 3, 12)) == 1
    assert torch.equal(torch.cat([part["image"] for part in split_batch(batch, 4, 1)]), batch["image"])


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


def test_what_a_failed_attempt_left_in_a_batchnorm_is_undone(tiny, tmp_path, monkeypatch):
    """Out of memory in the backward pass, after all statistics have been updated: as if it had never been tried."""
    cfg = tiny("freeze_strategy=full", "optimizer=sgd", "optimizer.lr=0.05")
    failures = [1]
    backward = torch.Tensor.backward

    def failing(self, *args, **kwargs):
        if failures:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Attempt {failures.pop()}.")
        return backward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", failing)
        record = run(cfg, tmp_path / "failed")
    assert record.accumulation == 2
    parts = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, accumulation=2))
    wanted = run(parts, tmp_path / "wanted")
    one, two = weights(tmp_path / "failed"), weights(tmp_path / "wanted")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert record.metrics == wanted.metrics
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("failed", "wanted")]
    losses = [[json.loads(line)["train_loss"] for line in each] for each in lines]
    assert losses[0] == losses[1]


def test_an_optimizer_without_memory_for_its_state_ends_the_run(tiny, tmp_path, monkeypatch):
    """A part of the weights may have moved: the step cannot be done again."""
    count = 0

    def failing(self, closure=None):
        nonlocal count
        closure()
        count += 1
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.SGD, "step", failing)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny("optimizer=sgd", "feature_cache=off"), tmp_path)
    assert count == 1


def test_parts_of_a_batchnorm_net_hold_two_images(tiny, tmp_path):
    """At 32 px the last maps are of one pixel: a BatchNorm cannot train on a single image."""
    record = run(tiny("freeze_strategy=full", "trainer.accumulation=8"), tmp_path)
    assert record.last_step == 6


def test_images_that_are_only_evaluated_are_halved(tiny, tmp_path, monkeypatch):
    sizes = []
    forward = TransferModel.forward

    def limited(self, image):
        if not self.training and len(image) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(image))
        return forward(self, image)

    whole = run(tiny("trainer.eval_batch_size=359", "feature_cache=off"), tmp_path / "whole")
    monkeypatch.setattr(TransferModel, "forward", limited)
    halved = run(tiny("trainer.eval_batch_size=359", "feature_cache=off"), tmp_path / "halved")
    assert max(sizes) <= 100
    assert halved.metrics["test"]["nll"] == pytest.approx(whole.metrics["test"]["nll"], rel=1e-6)
    with pytest.raises(torch.OutOfMemoryError):
        run(
            tiny("trainer.eval_batch_size=359", "feature_cache=off", "trainer.on_out_of_memory=fail"), tmp_path / "fail"
        )


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
        run(tiny("feature_cache=off"), tmp_path)


def test_gradient_checkpointing_updates_statistics_once(tiny, tmp_path):
    """The forward pass is computed twice, BatchNorm's statistics move once."""
    cfg = tiny("freeze_strategy=full", "optimizer=sgd", "optimizer.lr=0.05")
    run(cfg, tmp_path / "plain")
    run(
        dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, gradient_checkpointing=True)),
        tmp_path / "checkpointing",
    )
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "checkpointing")
    assert any(name.endswith("num_batches_tracked") for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)


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
            loss = parts.objective.loss(parts.model.logits, batch)
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
