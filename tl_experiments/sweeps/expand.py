"""From swept overrides to jobs: the product of the choices, then one composition per distinct choice of groups."""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Transformer
from hydra.errors import HydraException
from hydra.types import RunMode

from tl_experiments.config.compose import conf_dir, known_keys, resolve, translate, unknown_key
from tl_experiments.errors import ConfigError

# Text that needs no quotes and is not read as a number, a switch or null
_PLAIN_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_/][\w./-]*", re.IGNORECASE)

logger = logging.getLogger(__name__)


def expand(loader: ConfigLoader, params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
    """Every combination of the swept values, as lists of overrides.

    Args:
        loader: Hydra's loader; it knows the choices that a glob stands for.
        params: Sweeps of an experiment file; an argument of the same key replaces one.
        arguments: Overrides of the command line.
    """
    by_key = {key: values(override) for key, override in read_overrides(loader, params, arguments).items()}
    return [list(combination) for combination in itertools.product(*by_key.values())]


def read_overrides(loader: ConfigLoader, params: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Override]:
    """The last override of each key, by the key as it was typed; see ``expand``."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments])
    by_key = {override.get_key_element(): override for override in parsed}
    if "experiment" in by_key and by_key["experiment"].is_sweep_override():
        what = "swept, but each experiment has a sweep of its own"
        raise ConfigError("experiment", what, "give one command an experiment")
    return by_key


def values(override: Override) -> list[str]:
    """The override once for each of its values.

    Raises:
        ConfigError: It is an interval.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError(
            key, "an interval has no end of values", f"list them: {key}=0.1,1,10, or search it with tl tune"
        )
    return [f"{key}={_as_text(value)}" for value in override.sweep_iterator(transformer=Transformer.identity)]


def _as_text(value: Any) -> str:
    """A swept value as it can be written again; Hydra's own way drops the quotes, which ``~`` and others need."""
    if isinstance(value, str) and not _PLAIN_WORD.fullmatch(value):
        value = QuotedString(value, Quote.double)
    return value.with_quotes() if isinstance(value, QuotedString) else str(Transformer.str(value))


def compose_jobs(
    loader: ConfigLoader, verb: str, hydra_overrides: Sequence[str], jobs: Sequence[Sequence[str]]
) -> list[tuple[list[str], dict[str, Any]]]:
    """Compose each job into (its overrides, plain values); those that come out equal are one job."""
    compose = Composer(loader, verb, hydra_overrides)
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for job in jobs:
        kept, plain = compose(job)
        found.setdefault(repr(sorted(plain.items())), (kept, plain))
    compose.check_keys()
    return list(found.values())


class Composer:
    """Composes jobs from their overrides: one Hydra composition per distinct choice of groups.

    Overrides of plain values are written into a copy. One whose key the job's choices do not have, such as
    ``freeze_strategy.n`` under ``full``, is left out of that job, so one sweep can hold strategies with options of
    their own; a key that no choice has is an error of ``check_keys``.

    Args:
        loader: Hydra's.
        verb: Name of the root config.
        hydra_overrides: Of Hydra's own node.
    """

    def __init__(self, loader: ConfigLoader, verb: str, hydra_overrides: Sequence[str]) -> None:
        self._used: dict[str, bool] = {}
        self._compose = cache(lambda overrides: _compose(loader, verb, hydra_overrides, overrides))
        self.is_group: Callable[[str], bool] = cache(
            lambda key: (conf_dir() / key).is_dir() or bool(loader.get_group_options(key))
        )
        parser = OverridesParser.create()
        self.parse: Callable[[str], Override] = cache(parser.parse_override)

    def __call__(self, job: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The overrides that apply, and the composed values."""
        parsed = [self.parse(text) for text in job]
        is_value = [_sets_a_value(override, self.is_group) for override in parsed]
        plain = copy.deepcopy(
            self._compose(tuple(text for text, value in zip(job, is_value, strict=True) if not value))
        )
        kept = []
        for text, override, value in zip(job, parsed, is_value, strict=True):
            applies = not value or _update(plain, override.key_or_group.split("."), override.value())
            self._used[override.key_or_group] = self._used.get(override.key_or_group, False) or applies
            kept += [text] if applies else []
        return kept, resolve(plain)

    def check_keys(self) -> None:
        """Say which keys no job had.

        Raises:
            ConfigError: One that there is not.
        """
        for key in [key for key, applied in self._used.items() if not applied]:
            if key not in known_keys():
                raise unknown_key(key)
            logger.info("note: %s is left out: no job of this sweep has it", key)


def _sets_a_value(override: Override, group_exists: Callable[[str], bool]) -> bool:
    """Whether the override changes one value and neither a choice of groups nor the set of keys."""
    key = override.key_or_group
    special = override.is_add() or override.is_force_add() or override.is_delete() or override.is_hydra_override()
    return not (special or override.package is not None or "[" in key or group_exists(key))


def _compose(
    loader: ConfigLoader, verb: str, hydra_overrides: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    from omegaconf import OmegaConf, open_dict

    try:
        cfg = loader.load_configuration(verb, [*hydra_overrides, *overrides], run_mode=RunMode.RUN)
    except (HydraException, ValueError) as error:
        raise translate(error) from None
    with open_dict(cfg):
        del cfg["hydra"]
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _update(node: dict[str, Any], path: list[str], value: Any) -> bool:
    """Write ``value`` at ``path``, merging mappings as Hydra does; False where the path does not exist."""
    for key in path[:-1]:
        if not isinstance(node.get(key), dict):
            return False
        node = node[key]
    if path[-1] not in node:
        return False
    node[path[-1]] = _merged(node[path[-1]], value)
    return True


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
