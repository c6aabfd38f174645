"""Heads that are solved from the features at once: a path of penalties, or of neighbours, of which val chooses one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.config.heads import KNN, Logistic, SolvedHead
from tl_experiments.data.items import Split
from tl_experiments.errors import UserError
from tl_experiments.features.batches import CachedData
from tl_experiments.heads.knn import KNNHead, knn_logits
from tl_experiments.probes.logistic import logistic_path
from tl_experiments.probes.ridge import ridge_path
from tl_experiments.probes.stack import logits
from tl_experiments.probes.standardise import standardisation
from tl_experiments.training.metrics import Predictions, diverged
from tl_experiments.training.probe import Outcome, Probe, Progress, rows_of_metrics


def solve(probes: Sequence[Probe], cached: CachedData, progress: Progress) -> list[Outcome | UserError]:
    """Solve each run's head; in their order what each leaves.

    A setting of the path counts as a step: the strongest penalty, or the most neighbours, is the first, so that it is
    chosen at equal accuracy and NLL on val.
    """
    return [_solve(probe, dataclasses.replace(cached, data=probe.parts.data), progress) for probe in probes]


def _solve(probe: Probe, data: CachedData, progress: Progress) -> Outcome | UserError:
    parts, history = probe.parts, probe.history
    assert isinstance(probe.cfg.head, SolvedHead)
    name, settings = probe.cfg.head.path
    val, label = _features(data, "val")
    index = torch.from_numpy(parts.data.items("val"))
    order = sorted(settings, reverse=True)
    interrupt.check()
    for step, (outputs, weights) in enumerate(_path(probe, data, order, val), start=1):
        predictions = Predictions(index, label, outputs.cpu())
        if not predictions.finite():
            return diverged(f"outputs are not finite at {name} {order[step - 1]:g}")
        (metrics,) = rows_of_metrics(predictions.logits[None], label)
        history.enter(parts.phases[0], step, predictions, weights, None, time.perf_counter(), metrics=metrics)
        progress(probe.position, step, len(order))
    history.restore_best(parts.model)
    tests = {split: _outputs(probe, data, split) for split in parts.data.tests}
    tried = ", ".join(f"{setting:g}" for setting in order)
    note = f"Val chose {name} {order[history.best_step - 1]:g} of {tried}."
    return Outcome(tests, len(order), (note,))


def _outputs(probe: Probe, data: CachedData, split: Split) -> Predictions:
    """Of the run's head, as it is now."""
    features, label = _features(data, split)
    outputs = probe.parts.model.head.to(features.device)(features).detach().cpu()
    return Predictions(torch.from_numpy(probe.parts.data.items(split)), label, outputs)


def _path(
    probe: Probe, data: CachedData, settings: Sequence[float], val: Tensor
) -> Iterator[tuple[Tensor, Callable[[], dict[str, Tensor]]]]:
    """Outputs on val ``(n, C)`` of the head with each setting, and what gives a copy of its tensors."""
    cfg, n_classes = probe.cfg.head, len(probe.parts.data.spec.classes)
    train, labels = _features(data, "train")
    labels = labels.to(train.device)
    if isinstance(cfg, KNN):
        outputs = knn_logits(train, labels, val, n_classes, [int(one) for one in settings], cfg.temperature)
        for neighbours, output in zip(settings, outputs, strict=True):
            head = KNNHead(train.shape[1], n_classes, cfg.temperature)
            head.fill(train.cpu(), labels.cpu(), int(neighbours))
            yield output, lambda head=head: {f"head.{key}": value for key, value in head.state_dict().items()}  # type: ignore[misc]
        return
    scale = standardisation(train)
    solved = logistic_path if isinstance(cfg, Logistic) else ridge_path
    weight, bias = scale.fold(*solved(scale.apply(train), labels, n_classes, settings))
    for one_weight, one_bias, output in zip(weight, bias, logits(weight, bias, val), strict=True):
        state = {"head.weight": one_weight, "head.bias": one_bias}
        yield output, lambda state=state: state  # type: ignore[misc]


def _features(data: CachedData, split: Split) -> tuple[Tensor, Tensor]:
    """Features ``(n, D)`` of a split on their device, and labels ``(n,)`` on the CPU."""
    items = data.data.items(split)
    return data.evaluation.batch(items)[0].float(), data.data.labels(items)
