"""What an arm is called: its strategy's name and the options that tell it apart."""

from __future__ import annotations

import pytest

from tl_experiments.config import compose
from tl_experiments.training.identity import arm


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["freeze_strategy=full"], "full"),
        (["freeze_strategy=full", "freeze_strategy.norm_stats=frozen"], "full(norm_stats=frozen)"),
        (["freeze_strategy=discriminative"], "discriminative(decay=0.75)"),
        (["freeze_strategy=gradual_unfreezing"], "gradual_unfreezing"),
        (["freeze_strategy=gradual_unfreezing", "freeze_strategy.decay=0.5"], "gradual_unfreezing(decay=0.5)"),
        (["freeze_strategy=lp_ft"], "lp_ft"),
        (["freeze_strategy=lp_ft", "freeze_strategy.finetune_multiplier=0.3"], "lp_ft(finetune_multiplier=0.3)"),
        (["freeze_strategy=surgical"], "surgical(blocks=first)"),
        (["freeze_strategy=surgical", "freeze_strategy.blocks=[first,layer3,7]"], "surgical(blocks=first+layer3+7)"),
        (["freeze_strategy=bitfit"], "bitfit"),
        (["freeze_strategy=norm_only"], "norm_only"),
    ],
)
def test_labels(overrides, label):
    assert arm(compose(overrides))["freeze_strategy"] == label
