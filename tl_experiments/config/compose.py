"""Hydra's composition, and its errors in one line each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tl_experiments.config.schema import LrConfig, TrainConfig, TuneConfig
from tl_experiments.config.typed import did_you_mean, keys, members, typed
from tl_experiments.errors import ConfigError

_DEBUG = {"debug=true": "debug=traceback", "debug=false": "debug=none"}


@cache
def conf_dir() -> Path:
    """The folder ``conf/``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(str(package.parent / "conf"), "not found", "install tl_experiments again")


def groups() -> list[str]:
    """The config groups, for example ``backbone``."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and not path.name.startswith("_"))


def choices(group: str) -> dict[str, str]:
    """The choices of a group, each with the first comment line of its file."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        if not path.name.startswith("_"):
            comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
            found[path.stem] = next((line for line in comments if line and not line.startswith("@package")), "")
    return found


def finish(plain: dict[str, Any]) -> TrainConfig:
    """Composed plain values to the typed config.

    A strategy that re-initialises the backbone makes its weights irrelevant, so they are set to ``random``: the
    control arm of two weight files is one run, not two.
    """
    root = LrConfig if "lr_range" in plain else TuneConfig if "tune" in plain else TrainConfig
    cfg: TrainConfig = typed(root, plain)
    if cfg.freeze_strategy.reinitialize_backbone and cfg.backbone.weights != "random":
        cfg = replace(cfg, backbone=replace(cfg.backbone, weights="random"))
    return cfg


def compose(overrides: Sequence[str] = (), verb: str = "train") -> TrainConfig:
    """The config of one job, as the command line would compose it.

    Args:
        overrides: Hydra overrides, for example ``["backbone=resnet18", "trainer.max_epochs=3"]``.
        verb: The root config: ``train``, ``pretrain`` or ``tune``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return finish(plain_config(hydra_compose(verb, open_mappings(overrides))))
    except (HydraException, ValueError) as error:  # Hydra raises both for what a user can mistype
        raise translate(error) from None


def open_mappings(overrides: Sequence[str]) -> list[str]:
    """Let overrides add keys where any key is right, without Hydra's ``+``: in ``kwargs``, ``base_lr``,
    ``tests``, ``splits`` and what a cluster calls its own.

    ``debug`` may be given as one adds a group, ``+debug=overfit``, or as a switch, ``debug=true``.
    """
    free = re.compile(
        r"((?:backbone|optimizer)\.kwargs|freeze_strategy\.base_lr|dataset\.(?:tests|splits)"
        r"|executor\.(?:options|resources))\b"
    )
    overrides = [_DEBUG.get(text.lower().removeprefix("+"), text) for text in overrides]
    overrides = [text.removeprefix("+") if text.startswith("+debug=") else text for text in overrides]
    return [f"++{text}" if free.match(text) else text for text in overrides]


def plain_config(composed: Any) -> dict[str, Any]:
    """A composed config as plain values, interpolations resolved, without Hydra's own node."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError("config", str(error).split("\n")[0], "mend the interpolation") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def resolve(plain: dict[str, Any]) -> dict[str, Any]:
    """Resolve interpolations in plain values; costs nothing where there are none."""
    if "${" not in json.dumps(plain):
        return plain
    from omegaconf import OmegaConf

    return plain_config(OmegaConf.create(plain))


@cache
def known_keys() -> frozenset[str]:
    """Every dotted key that some choice of a group has."""
    return frozenset(keys(LrConfig) | keys(TuneConfig))


def unknown_key(key: str) -> ConfigError:
    """The error for an override of a key that the config does not have, or only with another choice."""
    group, _, rest = key.partition(".")
    if group == "lr_range":
        return ConfigError(key, "an option of the range test", "tl lr")
    if group == "tune" and key in known_keys():
        return ConfigError(key, "an option of the search", "tl tune")
    if owners := [name for name, cls in members(TrainConfig, group).items() if rest in keys(cls)]:
        return ConfigError(key, "not an option of the choice at hand", f"only with {group}={' or '.join(owners)}")
    if key in known_keys():  # an option of a choice of which several may stand at once
        return ConfigError(key, "not an option of the choice at hand", f"only with {group}={rest.partition('.')[0]}")
    return ConfigError(key, "unknown key", did_you_mean(key, known_keys() | set(groups())))


def swept_trackers() -> ConfigError:
    """The error for ``tracker=csv,wandb``: both are meant, not one after the other."""
    return ConfigError("tracker", "swept, but it changes no result", "several at once: 'tracker=[csv,wandb]'")


def translate(error: Exception) -> ConfigError:
    """One of Hydra's exceptions, in our one line with a fix."""
    text = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"Ambiguous value for argument '([^=]+)=", text):
        if match[1] == "tracker":
            return swept_trackers()
        return ConfigError(match[1], "several values, but this is a single run", "add -m for a sweep")
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match[1])
    if match := re.search(r"(?:Could not find|Could not load|Cannot find primary config) '([^']+)'", text):
        group, _, choice = match[1].rpartition("/")
        if group in groups():
            return ConfigError(group, f"unknown choice {choice!r}", _choice_fix(group, choice))
        return ConfigError(match[1], "no such config file", did_you_mean(match[1], groups()))
    if isinstance(override := getattr(error, "override", None), str):
        return _unparsable(override, text)
    return ConfigError("config", text.strip().replace("\n", "; "), "see tl train --help")


def _choice_fix(group: str, choice: str) -> str:
    fix = did_you_mean(choice, choices(group))
    if group == "backbone":
        from tl_experiments.config.timm_names import timm_names

        if choice in timm_names():
            return f"backbone=timm backbone.name={choice}"
        if not fix.startswith("did you mean"):
            fix = f"{did_you_mean(choice, timm_names())} (by backbone=timm backbone.name=...)"
    return fix


def _unparsable(override: str, reason: str) -> ConfigError:
    key, _, value = override.partition("=")
    if value and '"' not in value and "'" not in value:
        return ConfigError(
            override,
            "a character such as ~ ( ) : { } or a space needs quotes",
            f"quote twice, once for the shell and once for the value: '{key}=\"{value}\"'",
        )
    return ConfigError(override, f"not of the form key=value ({reason.strip().splitlines()[0]})", "see tl train --help")
