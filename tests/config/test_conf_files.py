"""Every file under ``conf/`` composes into the typed config, states all its values, and says what it is."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import timm
import timm.optim

from tl_experiments.config import backbones, compose, datasets, optimization, running, schema, trackers
from tl_experiments.config.compose import choices, conf_dir, groups
from tl_experiments.config.timm_names import timm_names, timm_optimizers

CHOICES = [(group, choice) for group in groups() for choice in choices(group)]
EXPERIMENTS = list(choices("experiment"))


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] != "experiment"])
def test_every_choice_composes(group, choice, tmp_path):
    needed = {
        ("backbone", "timm"): ["backbone.name=resnet18"],
        ("optimizer", "timm"): ["optimizer.algorithm=lamb", "optimizer.lr=0.002"],
        ("dataset", "image_folder"): [f"dataset.root={tmp_path}"],
        ("dataset", "csv"): [f"dataset.path={tmp_path}"],
        ("dataset", "npz"): [f"dataset.path={tmp_path}"],
        ("dataset", "hugging_face"): ["dataset.repo=owner/name"],
    }
    free = needed.get((group, choice), [])
    node = getattr(compose([f"{group}={choice}", *free]), group)
    if group == "tracker":
        assert list(node.chosen()) == ([] if choice == "none" else [choice])
    elif group != "backbone":
        assert node.name == choice  # one name everywhere
    else:
        assert node.name in timm.list_models()


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_explains_itself(group, choice):
    assert choices(group)[choice]


def test_names_of_classes_and_files_agree():
    """``FeatureExtraction`` is ``feature_extraction``: the YAML, the class and the report use one word."""
    strategies = {name for group, name in CHOICES if group == "freeze_strategy"}
    classes = {type(compose([f"freeze_strategy={name}"]).freeze_strategy).__name__ for name in strategies}
    assert {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in classes} == strategies


def test_no_defaults_hide_in_the_schema():
    """A value that no YAML states would be a second place for defaults; labels of heads and strategies need theirs."""
    for module in (backbones, datasets, optimization, running, schema, trackers):
        own = [
            cls for _, cls in inspect.getmembers(module, dataclasses.is_dataclass) if cls.__module__ == module.__name__
        ]
        assert own
        for cls in own:
            assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(cls)), cls


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_states_question_command_and_result(name):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    for word in ("Question:", "Command:", "Expected:"):
        assert re.search(rf"^# {word} \S", text, re.MULTILINE), f"{name} does not state its {word}"


def test_timm_names_are_those_that_timm_registers():
    assert set(timm_names()) == set(timm.list_models())
    assert set(timm_optimizers()) == set(timm.optim.list_optimizers())
