"""64 heads on one forward pass of a frozen backbone, as DINOv2 evaluates linear probes: a ModuleDict, one optimizer.

Each head has its learning rate as a parameter group of its own; the images are decoded and encoded in every epoch.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared import Net, eval_loader, given, tell, train_loader


def main() -> None:
    work = given()
    net = Net(work)
    head, net.tail = net.tail, nn.Identity()  # the net ends in the features
    net.eval()
    heads = nn.ModuleDict({f"head_{n}": copy.deepcopy(head) for n in range(len(work["learning_rates"]))})
    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": 0.01 if parameter.ndim > 1 else 0.0}
        for one, rate in zip(heads.values(), work["learning_rates"], strict=True)
        for parameter in one.parameters()
    ]
    optimizer = torch.optim.AdamW(groups)
    batches, val = train_loader(work), eval_loader(work, "val")
    curves: list[list[float]] = [[] for _ in heads]
    for _ in range(work["epochs"]):
        for image, label in batches:
            features = net(image).detach()
            optimizer.zero_grad()
            sum(cross_entropy(one(features), label) for one in heads.values()).backward()
            optimizer.step()
        for curve, (nll, _) in zip(curves, scores(net, heads, val), strict=True):
            curve.append(nll)
    tell(curves, [right for _, right in scores(net, heads, eval_loader(work, "test"))])


def scores(net: Net, heads: nn.ModuleDict, batches: object) -> list[tuple[float, float]]:
    """NLL and accuracy of each head, features computed once."""
    with torch.no_grad():
        found: list[tuple[Tensor, Tensor]] = [(net(image), label) for image, label in batches]
        features, labels = (torch.cat(each) for each in zip(*found, strict=True))
        outputs = [one(features) for one in heads.values()]
    return [(float(cross_entropy(out, labels)), float((out.argmax(1) == labels).float().mean())) for out in outputs]


if __name__ == "__main__":
    main()
