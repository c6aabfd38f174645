"""The start of every side: random weights with BatchNorm statistics of the photos, and the head that seed 0 gives."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm import create_model
from torch import nn

from shared import MEAN, SEED, STD, images
from tl_experiments.config.heads import Linear
from tl_experiments.heads import build_head
from tl_experiments.seeds import derive


def main() -> None:
    data, weights, start = sys.argv[1:]
    torch.manual_seed(SEED)
    net = create_model("resnet18", num_classes=0).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average
    photos = images({"data": data, "image_size": 64}, "train")
    some = torch.stack([photos[index][0] for index in range(0, len(photos), max(1, len(photos) // 64))])
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) * 255 for each in (MEAN, STD))
    with torch.no_grad():
        net((some - mean) / std)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
    head = build_head(Linear(name="linear", dropout=0.0), net.num_features, len(photos.classes), derive(SEED, "head"))
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, start)
    assert Path(weights).exists()


if __name__ == "__main__":
    main()
