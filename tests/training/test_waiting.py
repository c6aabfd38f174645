"""A training step reads no number out of a tensor: on a GPU each would wait for all work that is queued."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tl_experiments.training.run import run

WAITING = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select"}


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_the_counter_counts():
    with Waits() as waits:
        number = torch.ones(3)
        assert number.sum() == 3
        number[number > 0].sum().item()
        float(number[0])
    assert waits.seen["aten::_local_scalar_dense"] + waits.seen["aten::is_nonzero"] >= 3


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("live", ["freeze_strategy=full", "feature_cache=off"]),
        ("averaged", ["freeze_strategy=full", "feature_cache=off", "trainer.ema_decay=0.9", "trainer.accumulation=2"]),
        ("cached", ["freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "backbone.preprocessing.image_size=64"]),
        ("stack", ["freeze_strategy=feature_extraction"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_steps_wait_no_more_often(tiny, tmp_path, way, options):
    """The same images and validations in more steps; SGD, since an AdamW that is not fused reads its own counter."""
    waited = []
    for batch_size, steps in ((5, 32), (2, 80)):
        cfg = tiny(
            "optimizer=sgd", "dataset.shots=4", "trainer.max_epochs=4", f"trainer.batch_size={batch_size}", *options
        )
        with Waits() as waits:
            record = run(cfg, tmp_path / str(batch_size))
        assert record.last_step == steps
        assert record.work["cached_phases"] == ([0] if way in ("cached", "stack") else [])
        waited.append({name: waits.seen[name] for name in WAITING})
    assert waited[0] == waited[1]
