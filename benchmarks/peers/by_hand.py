"""A PyTorch script written by hand: the frozen part in eval mode and without gradient, val in every epoch."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from shared import Net, adamw, eval_loader, given, score, tell, train_loader


def main() -> None:
    work = given()
    curves, tests = [], []
    for learning_rate in work["learning_rates"]:
        net, batches, val = Net(work), train_loader(work), eval_loader(work, "val")
        optimizer, curve = adamw(net.parameters(), learning_rate), []
        for _ in range(work["epochs"]):
            net.train()
            for image, label in batches:
                optimizer.zero_grad()
                cross_entropy(net(image), label).backward()
                optimizer.step()
            net.eval()
            curve.append(score(net, val)[0])
        curves.append(curve)
        tests.append(score(net, eval_loader(work, "test"))[1])
    tell(curves, tests)


if __name__ == "__main__":
    main()
