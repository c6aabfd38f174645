"""A PyTorch script written by hand that encodes each image once and trains one head after the other on the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from shared import EVAL_BATCH, SEED, Net, adamw, given, images, tell
from tl_experiments.data.batches import epoch_batches


def encode(net: Net, work: dict, split: str) -> tuple[Tensor, Tensor]:
    """Features ``(n, 512)`` and labels of a split."""
    body, net.tail = net.tail, nn.Identity()  # forward stops before the head
    net.eval()
    with torch.no_grad():
        found = [(net(image), label) for image, label in DataLoader(images(work, split), EVAL_BATCH)]
    net.tail = body
    return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])


def train_head(
    head: nn.Module, work: dict, rate: float, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> list[float]:
    """Val NLL after each epoch."""
    features, labels = train
    optimizer, curve = adamw(head.parameters(), rate), []
    for epoch in range(work["epochs"]):
        for batch in epoch_batches(len(labels), work["batch_size"], SEED, epoch):
            chosen = torch.from_numpy(batch)
            optimizer.zero_grad()
            cross_entropy(head(features[chosen]), labels[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(float(cross_entropy(head(val[0]), val[1])))
    return curve


def main() -> None:
    work = given()
    net = Net(work)
    train, val, test = (encode(net, work, split) for split in ("train", "val", "test"))
    curves, tests = [], []
    start = {name: tensor.clone() for name, tensor in net.tail.state_dict().items()}
    for rate in work["learning_rates"]:
        net.tail.load_state_dict(start)
        curves.append(train_head(net.tail, work, rate, train, val))
        with torch.no_grad():
            tests.append(float((net.tail(test[0]).argmax(1) == test[1]).float().mean()))
    tell(curves, tests)


if __name__ == "__main__":
    main()
