"""A PyTorch script written by hand for several processes: DistributedDataParallel, images in memory, val in each epoch.

    torchrun --nproc-per-node 2 by_hand_ddp.py WORK

Each process takes its part of every batch; the first one scores.
"""

from __future__ import annotations

import itertools
import os
import time

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from shared import EVAL_BATCH, Net, Order, adamw, given, images, score, tell


def main() -> None:
    work = given()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    held = {}
    for split in ("train", "val", "test"):
        photos = images(work, split)
        pictures, labels = zip(*(photos[index] for index in range(len(photos))), strict=True)
        held[split] = torch.stack(pictures), torch.tensor(labels)
    (learning_rate,) = work["learning_rates"]
    net, order = Net(work), Order(len(held["train"][1]), work["batch_size"])
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer, curve = adamw(net.parameters(), learning_rate), []
    ends = [time.perf_counter()]

    def scored(split: str) -> tuple[float, float]:
        return score(net, list(zip(*(one.split(EVAL_BATCH) for one in held[split]), strict=True)))  # type: ignore[arg-type]

    for _ in range(work["epochs"]):
        model.train()
        for batch in order:
            part = torch.tensor(batch).tensor_split(world)[rank]
            image, label = (each[part] for each in held["train"])
            optimizer.zero_grad()
            cross_entropy(model(image), label).backward()
            optimizer.step()
        if rank == 0:
            net.eval()
            curve.append(scored("val")[0])
        ends.append(time.perf_counter())
    if rank == 0:
        tell([curve], [scored("test")[1]], epoch_s=[end - start for start, end in itertools.pairwise(ends)])
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
