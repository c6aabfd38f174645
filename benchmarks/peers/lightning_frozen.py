"""A plain Lightning module whose frozen part is properly frozen: eval mode, no gradient."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from shared import Net, adamw, eval_loader, given, score, tell, train_loader


class Module(pl.LightningModule):
    """Train a net; keep the val NLL of each epoch."""

    def __init__(self, net: Net, learning_rate: float) -> None:
        super().__init__()
        self.net, self.backbone, self.learning_rate = net, net.backbone, learning_rate
        self.curve: list[float] = []
        self._outputs: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, _index: int) -> Tensor:
        image, label = batch
        return cross_entropy(self.net(image), label)

    def validation_step(self, batch: Any, _index: int) -> None:
        image, label = batch
        self._outputs.append((self.net(image), label))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(each) for each in zip(*self._outputs, strict=True))
        self._outputs.clear()
        self.curve.append(float(cross_entropy(logits, labels)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters(), self.learning_rate)


def fit(module: Module, epochs: int, batches: DataLoader[Any], val: DataLoader[Any], callbacks: list[Any]) -> None:
    """Lightning without logger, checkpoints and bars: training and validation alone."""
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, batches, val)


def main() -> None:
    work = given()
    curves, tests = [], []
    for learning_rate in work["learning_rates"]:
        net = Net(work)
        module = Module(net, learning_rate)
        fit(module, work["epochs"], train_loader(work), eval_loader(work, "val"), [])
        curves.append(module.curve)
        tests.append(score(net.eval(), eval_loader(work, "test"))[1])
    tell(curves, tests)


if __name__ == "__main__":
    main()
