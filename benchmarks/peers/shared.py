"""What all peers have in common: the images, their order, the net and its start, how val is scored, the account.

A peer is what a careful person writes without this project: a script. They share this file so that they differ in
nothing but the way of training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm import create_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tl_experiments.data.batches import epoch_batches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_FRACTION = 0.95  # of timm's resnet18
EVAL_BATCH = 256
SEED = 0


def given() -> dict[str, Any]:
    """The work, from the command line."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    return json.loads(sys.argv[1])


def images(work: dict[str, Any], split: str) -> ImageFolder:
    """The split's JPEGs as uint8 squares: short side resized, centre cropped."""
    size = work["image_size"]
    transform = v2.Compose(
        [
            v2.Resize(int(size / CROP_FRACTION), interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.PILToTensor(),
        ]
    )
    return ImageFolder(str(Path(work["data"]) / split), transform)


class Order:
    """A batch sampler: each time it is gone through, the next epoch's order."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size, self.epoch = n, batch_size, 0

    def __iter__(self) -> Iterator[list[int]]:
        batches = epoch_batches(self.n, self.batch_size, SEED, self.epoch)
        self.epoch += 1
        return iter([batch.tolist() for batch in batches])

    def __len__(self) -> int:
        return len(epoch_batches(self.n, self.batch_size, SEED, 0))


def train_loader(work: dict[str, Any]) -> DataLoader[Any]:
    """Batches of training images, decoded in every epoch anew."""
    photos = images(work, "train")
    return DataLoader(photos, batch_sampler=Order(len(photos), work["batch_size"]))


def eval_loader(work: dict[str, Any], split: str) -> DataLoader[Any]:
    """All images of val or test."""
    return DataLoader(images(work, split), EVAL_BATCH)


class Net(nn.Module):
    """resnet18 in two parts: what is frozen, truly frozen, and what trains.

    Args:
        work: Its ``strategy`` says where the cut is.
        properly_frozen: Whether the frozen part is in eval mode and computes no gradient, whoever calls ``train()``.
    """

    def __init__(self, work: dict[str, Any], *, properly_frozen: bool = True) -> None:
        super().__init__()
        net = create_model("resnet18", num_classes=0)
        net.load_state_dict(load_file(work["weights"]), strict=False)
        stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
        stages = [stem, net.layer1, net.layer2, net.layer3, net.layer4, net.global_pool]
        cut = {"feature_extraction": 6, "last_n_blocks": 4, "full": 0}[work["strategy"]]
        start = load_file(work["start"])
        head = nn.Linear(*reversed(start["weight"].shape))
        head.load_state_dict(start)
        self.backbone = nn.Sequential(*stages[:cut])
        self.tail = nn.Sequential(*stages[cut:], head)
        self.properly_frozen = properly_frozen and cut > 0
        if self.properly_frozen:
            self.backbone.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.train()  # Lightning keeps the modes that it finds

    def forward(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) * 255 for each in (MEAN, STD))
        x = ((image - mean) / std).contiguous(memory_format=torch.channels_last)
        if self.properly_frozen:
            with torch.no_grad():
                x = self.backbone(x)
        else:
            x = self.backbone(x)
        return self.tail(x)

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        if self.properly_frozen:
            self.backbone.eval()
        return self


def adamw(parameters: Iterator[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """Matrices and kernels are decayed, norms and biases are not."""
    trained = [one for one in parameters if one.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": 0.01},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)


def score(logits: Callable[[Tensor], Tensor], batches: DataLoader[Any]) -> tuple[float, float]:
    """NLL and accuracy over all batches."""
    with torch.no_grad():
        outputs = [(logits(image), label) for image, label in batches]
    out, label = torch.cat([one for one, _ in outputs]), torch.cat([one for _, one in outputs])
    return float(cross_entropy(out, label)), float((out.argmax(1) == label).float().mean())


def tell(val_nll: list[list[float]], test_accuracy: list[float], **more: Any) -> None:
    """The account, one line of JSON: val NLL a job and epoch, test accuracy a job."""
    sys.stdout.write(json.dumps({"val_nll": val_nll, "test_accuracy": test_accuracy, **more}) + "\n")
