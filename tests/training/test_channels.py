"""Images of 1, 4 and 13 channels in whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tl_experiments.training.build import build
from tl_experiments.training.identity import arm
from tl_experiments.training.run import run


@pytest.fixture
def folder(tmp_path):
    """Two classes that differ in the last channel alone; 1 and 4 channels as PNG, others as arrays."""

    def make(channels):
        for number in range(24):
            rng = np.random.default_rng(number)
            pixels = rng.integers(100, 156, (20, 24, channels), dtype=np.uint8)
            pixels[..., -1] += 90 * (number % 2)
            path = tmp_path / f"images{channels}" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if channels in (1, 4):
                Image.fromarray(pixels.squeeze()).save(path)
            else:
                np.save(path.with_suffix(".npy"), pixels)
        return tmp_path / f"images{channels}"

    return make


@pytest.mark.parametrize(("net", "size"), [("test_resnet", 32), ("test_vit", 32)])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_run_end_to_end(tiny, tmp_path, folder, channels, net, size):
    cfg = tiny(
        "dataset=image_folder",
        "dataset.shots=null",
        f"dataset.root={folder(channels)}",
        f"dataset.channels={channels}",
        "backbone=timm",
        f"backbone.name={net}",
        "backbone.weights=random",
        f"backbone.preprocessing.image_size={size}",
        "freeze_strategy=full",
        "trainer.max_epochs=30",
    )
    record = run(cfg, tmp_path / "run")
    assert record.metrics["val"]["accuracy"] == 1  # what tells the classes apart reached the net
    assert arm(cfg)["dataset"] == f"images{channels} ({channels} channel{'s' if channels > 1 else ''})"
    facts = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
    assert len(facts["input"]["mean"]) == len(facts["input"]["std"]) == channels


def test_normalisation_is_of_each_channel(tiny, folder):
    shared = ["dataset=image_folder", f"dataset.root={folder(13)}", "dataset.channels=13"]
    given = [f"backbone.preprocessing.{key}={[0.1 + n / 20 for n in range(13)]}" for key in ("mean", "std")]
    model = build(tiny(*shared, *given)).model
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = next(iter(build(tiny(*shared)).data.eval_loader("val")))["image"]
    model.eval()(image)
    pixels = image.double().numpy() / 255
    expected = [(pixels[:, n] - (0.1 + n / 20)) / (0.1 + n / 20) for n in range(13)]
    np.testing.assert_allclose(seen[0].numpy(), np.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_another_size_and_channels_than_the_weights_are_said(tiny, tmp_path, folder):
    import timm
    import torch

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    cfg = tiny(
        "dataset=image_folder",
        f"dataset.root={folder(1)}",
        "dataset.channels=1",
        "backbone.weights=pretrained",
        f"backbone.kwargs={{pretrained_cfg_overlay: {{file: {tmp_path / 'weights.pth'}}}}}",
    )
    assert build(cfg).notes == (
        "The first convolution was adapted from 3 to 1 channels (conv1.0.weight).",
        "The weights were trained on images of 160 px and this run uses 32 px: "
        "backbone.preprocessing.image_size=160 would match.",
    )
