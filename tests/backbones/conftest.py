"""A hub's cache on disk, filled with nets that were never trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which timm and the hub's client use while offline."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def publish(hub_cache: Path) -> Callable[..., nn.Module]:
    """``publish("test_resnet")`` puts random weights into the cache as if timm's had been fetched; returns the net."""

    def put(name: str, without: str = "no tensor") -> nn.Module:
        torch.manual_seed(3)
        net = timm.create_model(name)
        for tensor in net.state_dict().values():  # norms at 1 and biases at 0 would match by accident
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.01)
        repo, _, _ = str(net.pretrained_cfg["hf_hub_id"]).partition("@")
        folder = hub_cache / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        (folder / "snapshots" / COMMIT).mkdir(parents=True)
        described = {"architecture": name, "num_classes": 1000, "pretrained_cfg": {**net.pretrained_cfg, "tag": None}}
        (folder / "snapshots" / COMMIT / "config.json").write_text(json.dumps(described))
        state = {key: tensor.clone() for key, tensor in net.state_dict().items() if not key.startswith(without)}
        save_file(state, folder / "snapshots" / COMMIT / "model.safetensors")
        return net

    return put
