"""Lightning's own callback as it ships: ``BackboneFinetuning`` freezes all of ``backbone`` but its BatchNorm layers.

Partial fine-tuning takes the same freeze for the part below the cut: ``backbone`` holds what is frozen. Since its norms
train, gradients flow through all of it, and its results are not those of a frozen backbone.
"""

from __future__ import annotations

from pytorch_lightning.callbacks import BackboneFinetuning

from lightning_frozen import Module, fit
from shared import Net, eval_loader, given, score, tell, train_loader


def main() -> None:
    work = given()
    curves, tests = [], []
    for learning_rate in work["learning_rates"]:
        net = Net(work, properly_frozen=False)
        module = Module(net, learning_rate)
        never = work["epochs"] + 1  # the backbone stays as frozen as the callback freezes it
        callbacks = [] if work["strategy"] == "full" else [BackboneFinetuning(unfreeze_backbone_at_epoch=never)]
        fit(module, work["epochs"], train_loader(work), eval_loader(work, "val"), callbacks)
        curves.append(module.curve)
        tests.append(score(net.eval(), eval_loader(work, "test"))[1])
    tell(curves, tests)


if __name__ == "__main__":
    main()
