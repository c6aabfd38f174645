"""fastai's way: a learner over an image folder, its body frozen, or from one layer group on, or not at all.

fastai freezes parameters but lets frozen BatchNorm layers train, by default; its order is its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Learner, Normalize, Resize, accuracy
from safetensors.torch import load_file
from timm import create_model
from torch import nn

from shared import EVAL_BATCH, MEAN, STD, given, tell


def layer_groups(net: nn.Sequential) -> list[list[nn.Parameter]]:
    """Below layer4, layer4, the head."""
    return [list(net[:4].parameters()), list(net[4:6].parameters()), list(net[6:].parameters())]


def main() -> None:
    work = given()
    size = work["image_size"]
    block = DataBlock(
        (ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
        splitter=GrandparentSplitter("train", "val"), item_tfms=Resize(size),
        batch_tfms=[Normalize.from_stats(MEAN, STD)],
    )  # fmt: skip
    curves, tests = [], []
    for rate in work["learning_rates"]:
        loaders = block.dataloaders(
            Path(work["data"]), bs=work["batch_size"], val_bs=EVAL_BATCH, num_workers=0, device="cpu", drop_last=False
        )
        body = create_model("resnet18", num_classes=0)
        body.load_state_dict(load_file(work["weights"]), strict=False)
        start = load_file(work["start"])
        head = nn.Linear(*reversed(start["weight"].shape))
        head.load_state_dict(start)
        stem = nn.Sequential(body.conv1, body.bn1, body.act1, body.maxpool)
        net = nn.Sequential(stem, body.layer1, body.layer2, body.layer3, body.layer4, body.global_pool, head)
        learner = Learner(
            loaders, net.to(memory_format=torch.channels_last), loss_func=nn.CrossEntropyLoss(), metrics=accuracy,
            splitter=layer_groups, wd=0.01,  # its Adam decays apart from the gradient, as AdamW
        )  # fmt: skip
        learner.freeze_to({"feature_extraction": 2, "last_n_blocks": 1, "full": 0}[work["strategy"]])
        with learner.no_bar(), learner.no_logging():
            learner.fit(work["epochs"], lr=rate)
        curves.append([float(values[1]) for values in learner.recorder.values])
        tests.append(float(learner.recorder.values[-1][2]))
    tell(curves, tests)


if __name__ == "__main__":
    main()
