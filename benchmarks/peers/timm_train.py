"""timm's way: its ``train.py`` is not in its package, so this goes through the same functions in the same order.

Dataset, loader, optimizer and losses are timm's, one pass of training and one of validation an epoch, a checkpoint and
a line of summary after each. It has no freezing: every strategy is a full fine-tune. The order is the loader's own, and
the loader leaves out a last batch that is not full.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, CheckpointSaver, accuracy, update_summary
from torch import nn

from shared import CROP_FRACTION, EVAL_BATCH, MEAN, STD, given, tell


def loader_of(work: dict, split: str, training: bool) -> object:
    """timm's loader without augmentation, in this process."""
    size = (3, work["image_size"], work["image_size"])
    return create_loader(
        create_dataset("", root=work["data"], split=split, is_training=training),
        input_size=size, batch_size=work["batch_size"] if training else EVAL_BATCH, is_training=training, no_aug=True,
        interpolation="bicubic", mean=MEAN, std=STD, crop_pct=CROP_FRACTION, num_workers=0, use_prefetcher=False,
        device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip


def validate(net: nn.Module, batches: object, loss_fn: nn.Module) -> OrderedDict[str, float]:
    losses, top1 = AverageMeter(), AverageMeter()
    net.eval()
    with torch.inference_mode():
        for image, label in batches:
            output = net(image.contiguous(memory_format=torch.channels_last))
            losses.update(loss_fn(output, label).item(), len(label))
            top1.update(accuracy(output, label)[0].item(), len(label))
    return OrderedDict(loss=losses.avg, top1=top1.avg)


def main() -> None:
    work = given()
    curves, tests, images = [], [], 0
    for rate in work["learning_rates"]:
        start = load_file(work["start"])
        net = create_model("resnet18", num_classes=len(start["bias"])).to(memory_format=torch.channels_last)
        net.load_state_dict({**load_file(work["weights"]), **{f"fc.{name}": each for name, each in start.items()}})
        batches, val = loader_of(work, "train", True), loader_of(work, "val", False)
        optimizer = create_optimizer_v2(net, opt="adamw", lr=rate, weight_decay=0.01)
        train_loss, val_loss = LabelSmoothingCrossEntropy(smoothing=0.0), nn.CrossEntropyLoss()
        saver = CheckpointSaver(net, optimizer, checkpoint_dir=".", recovery_dir=".", decreasing=True, max_history=1)
        curve = []
        for epoch in range(work["epochs"]):
            net.train()
            losses = AverageMeter()
            for image, label in batches:
                output = net(image.contiguous(memory_format=torch.channels_last))
                loss = train_loss(output, label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.update(loss.item(), len(label))
                images += len(label)
            scores = validate(net, val, val_loss)
            summary = Path("summary.csv")
            update_summary(epoch, OrderedDict(loss=losses.avg), scores, str(summary), write_header=not summary.exists())
            saver.save_checkpoint(epoch, metric=scores["loss"])
            curve.append(scores["loss"])
        curves.append(curve)
        tests.append(validate(net, loader_of(work, "test", False), val_loss)["top1"] / 100)
    tell(curves, tests, images_trained_on=images)


if __name__ == "__main__":
    main()
