"""Misspelt keys, wrong types and values out of range: one line with what to do."""

from __future__ import annotations

import pytest

from tl_experiments.config import compose
from tl_experiments.config.timm_names import check_backbone_name
from tl_experiments.errors import ConfigError

CASES = [
    (["trainer.max_epoch=3"], r"trainer.max_epoch: unknown key -> did you mean trainer.max_epochs\?"),
    (["+trainer.max_epoch=3"], r"trainer.max_epoch: unknown key -> did you mean trainer.max_epochs\?"),
    (["lr=0.1"], r"lr: unknown key -> did you mean optimizer.lr\?"),
    (["epochs=3"], r"epochs: unknown key -> did you mean trainer.max_epochs\?"),
    (["sed=3"], r"sed: unknown key -> did you mean seed\?"),
    (["freez_strategy=full"], r"freez_strategy: unknown key -> did you mean freeze_strategy\?"),
    (["freeze_strategy=ful"], r"freeze_strategy: unknown choice 'ful' -> did you mean full\?"),
    (["freeze_strategy.name=ful"], r"freeze_strategy: unknown choice 'ful' -> did you mean full\?"),
    (["backbone=resnet_18"], r"backbone: unknown choice 'resnet_18' -> did you mean resnet18"),
    (["backbone=resnet34"], r"backbone: unknown choice 'resnet34' -> backbone=timm backbone.name=resnet34"),
    (["backbone=timm"], r"backbone.name: no value given -> add backbone.name="),
    (["optimizer.lr=abc"], r"optimizer.lr: got 'abc', expected a number or null"),
    (["optimizer.lr=-1"], r"optimizer.lr: got -1.0, expected a number above 0"),
    (["optimizer.lr=nan"], r"optimizer.lr: got nan, expected a number or null"),
    (["optimizer.lr=1e-3", "optimizer.lr_factor=3"], r"optimizer.lr_factor: got 3.0 together with lr 0.001"),
    (["optimizer.betas=[0.9]"], r"optimizer.betas: got \[0.9\], expected 2 numbers"),
    (["trainer.max_epochs=1.5"], r"trainer.max_epochs: got 1.5, expected a whole number"),
    (["trainer.max_epochs=true"], r"trainer.max_epochs: got True, expected a whole number"),
    (["trainer.max_epochs=0"], r"trainer.max_epochs: got 0, expected 1 or more"),
    (["trainer.precision=bf16"], r"trainer.precision: got 'bf16', expected one of auto, .* did you mean bf16-mixed\?"),
    (["trainer=null"], r"config: Config group override must be a string .* -> see tl train --help"),
    (["print_layout=1"], r"print_layout: got 1, expected true or false"),
    (["dataset.label_fraction=1.5"], r"dataset.label_fraction: got 1.5, expected \(0, 1\]"),
    (["dataset.label_fraction=0.5", "dataset.shots=5"], r"together with shots 5, expected one of the two"),
    (["dataset.val_fraction=0.6", "dataset.test_fraction=0.6"], r"expected a sum below 1"),
    (["dataset=image_folder"], r"dataset.root: no folder given -> dataset.root="),
    (
        ["dataset=image_folder", "dataset.root=~/photos"],
        r"dataset.root=~/photos: .* quote twice.*'dataset.root=\"~/photos\"'",
    ),
    (["seed=-1"], r"seed: got -1, expected 0 to 4294967295"),
    (["seed=1,2"], r"seed: several values, but this is a single run -> add -m for a sweep"),
    (["dataset.root=/photos"], r"dataset.root: not an option of the choice at hand -> only with dataset=image_folder"),
    (["freeze_strategy.n=2"], r"freeze_strategy.n: not an option .* -> only with freeze_strategy=last_n_blocks"),
    (["name=a/b"], r"name: got 'a/b', expected letters, digits"),
    (["name"], r"name: not of the form key=value"),
    (["freeze_strategy=last_n_blocks", "freeze_strategy.n=-1"], r"freeze_strategy.n: got -1, expected 0 or more"),
    (
        ["freeze_strategy=discriminative", "freeze_strategy.decay=2"],
        r"freeze_strategy.decay: got 2.0, expected \(0, 1\]",
    ),
    (
        ["freeze_strategy=surgical", "freeze_strategy.blocks=first"],
        r"freeze_strategy.blocks: got 'first', expected a list",
    ),
    (
        ["freeze_strategy=surgical", "freeze_strategy.blocks=[]"],
        r"freeze_strategy.blocks: got \[\], expected at least one",
    ),
    (
        ["freeze_strategy=lp_ft", "freeze_strategy.probe_fraction=1"],
        r"freeze_strategy.probe_fraction: got 1.0, expected",
    ),
    (["backbone.preprocessing.mean=[0.5]"], r"backbone.preprocessing.mean: got \(0.5,\), expected 3 numbers"),
    (
        ["backbone.preprocessing.std=[0.5,0,1]"],
        r"backbone.preprocessing.std: got \(0.5, 0.0, 1.0\), .* numbers above 0",
    ),
    (
        ["dataset=image_folder", "dataset.root=x", "dataset.channels=13", "backbone.preprocessing.mean=[0.5,0.5,0.5]"],
        r"backbone.preprocessing.mean: got \(0.5, 0.5, 0.5\), expected 13 numbers, one a channel",
    ),
    (["dataset=image_folder", "dataset.root=x", "dataset.channels=0"], r"dataset.channels: got 0, expected 1 or more"),
    (["dataset.channels=1"], r"dataset.channels: not an option .* -> only with dataset=image_folder"),
    (["head=mlp", "head.hidden_sizes=[]"], r"head.hidden_sizes: got \[\], expected one or more numbers"),
    (["head.dropout=1"], r"head.dropout: got 1.0, expected \[0, 1\)"),
    (["head=cosine", "head.temperature=0"], r"head.temperature: got 0.0, expected a number above 0"),
    (["head=attention_pool", "head.num_heads=0"], r"head.num_heads: got 0, expected 1 or more"),
    (["head=mpl"], r"head: unknown choice 'mpl' -> did you mean mlp\?"),
    (["augmentation=mixup", "augmentation.alpha=0"], r"augmentation.alpha: got 0.0, expected a number above 0"),
    (["augmentation=randaugment", "augmentation.magnitude=31"], r"augmentation.magnitude: got 31, expected 0 to 30"),
    (["augmentation=trivial", "augmentation.min_area=0"], r"augmentation.min_area: got 0.0, expected \(0, 1\]"),
    (["seed=${nowhere}"], r"config: Interpolation key 'nowhere' not found"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_line_that_says_what_to_do(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)
    assert " -> " in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"])
def test_backbone_names_that_may_exist_pass(name):
    check_backbone_name(name)


def test_a_misspelt_backbone_name():
    with pytest.raises(ConfigError, match=r"backbone.name: timm has no model 'resnet_18' -> did you mean resnet18"):
        check_backbone_name("resnet_18")


def test_numbers_without_a_point_are_numbers():
    assert compose(["optimizer.lr=1e-3"]).optimizer.lr == 0.001


def test_the_strategy_rule_and_the_factor():
    rule = compose(["freeze_strategy=full"])
    assert compose(["freeze_strategy=full", "optimizer.lr_factor=3"]).base_lr() == pytest.approx(3 * rule.base_lr())
    assert compose(["freeze_strategy=full", "optimizer.lr=0.5"]).base_lr() == 0.5
    rules = {compose([f"freeze_strategy={name}"]).base_lr() for name in ("feature_extraction", "full", "last_n_blocks")}
    assert len(rules) == 3


def test_keys_can_be_added_where_any_key_is_right():
    cfg = compose(["backbone.kwargs.drop_rate=0.1", "backbone.kwargs={a: 1}", "freeze_strategy.base_lr.lion=1e-4"])
    assert cfg.backbone.kwargs == {"drop_rate": 0.1, "a": 1}
    assert cfg.freeze_strategy.base_lr["lion"] == 1e-4


def test_from_scratch_has_no_use_for_weights():
    assert compose(["freeze_strategy=from_scratch"]).backbone.weights == "random"
