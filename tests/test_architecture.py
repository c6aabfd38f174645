"""The house rules that a machine can check: who may import whom, and who may import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tl_experiments

PACKAGE = Path(tl_experiments.__file__).parent

_BASE = {"errors", "types", "records", "seeds", "safe_text", "interrupt", "network", "user_paths"}
MAY_IMPORT = {
    "errors": set(),
    "interrupt": {"errors"},
    "types": set(),
    "seeds": set(),
    "network": set(),
    "user_paths": set(),
    "safe_text": set(),
    "records": {"errors", "safe_text"},
    "strategies": _BASE,
    "config": _BASE | {"strategies"},
    "data": _BASE | {"config", "cache"},
    "backbones": _BASE | {"config"},
    "heads": _BASE | {"config"},
    "objectives": _BASE | {"config"},
    "cache": _BASE,
    "probes": _BASE,
    "metrics": {"errors"},
    "features": _BASE | {"config", "strategies", "cache", "data"},
    "training": _BASE
    | {"config", "strategies", "cache", "data", "backbones", "heads", "objectives", "features", "probes", "metrics"},
    "inference": _BASE
    | {"config", "strategies", "cache", "data", "backbones", "heads", "features", "training", "metrics", "analysis"},
    "sweeps": _BASE | {"config", "strategies", "cache", "training"},
    "tuning": _BASE | {"config", "sweeps", "training"},
    "analysis": {"errors", "types", "records", "safe_text", "metrics"},
    "report": {"errors", "types", "records", "safe_text", "metrics", "analysis"},
    "tracking": {"errors", "types", "records", "safe_text", "interrupt", "metrics", "data"},
    "help": _BASE | {"config"},
    "commands": {
        *_BASE,
        "config",
        "cache",
        "data",
        "training",
        "inference",
        "sweeps",
        "tuning",
        "analysis",
        "report",
        "tracking",
    },
    "cli": {*_BASE, "config", "help", "sweeps", "commands", "__init__"},
    "__init__": {"config", "records", "training", "analysis", "inference"},
    "__main__": {"cli"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Modules that a file names in ``import a.b``, ``from a.b import c`` and relative imports, as absolute names."""
    package = ("tl_experiments", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for name in imports(path):
        if name.startswith("tl_experiments."):
            imported = name.split(".")[1]
            imported = (
                imported if (PACKAGE / imported).exists() or (PACKAGE / f"{imported}.py").exists() else "__init__"
            )
            assert imported in {layer(path), *MAY_IMPORT[layer(path)]}, f"{layer(path)} must not import {imported}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tl_experiments.sweeps.ledger", "tl_experiments.sweeps.ledger"),
        ("from tl_experiments import sweeps", "tl_experiments.sweeps"),
        ("from ..sweeps import ledger", "tl_experiments.sweeps.ledger"),
        ("from .. import sweeps", "tl_experiments.sweeps"),
    ],
)
def test_every_form_of_import_is_seen(source, found, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "data" / "module.py"
    path.parent.mkdir()
    path.write_text(source)
    assert list(imports(path)) == [found]


HEAVY = {"torch", "torchvision", "timm", "pytorch_lightning", "torchmetrics", "wandb", "sklearn", "scipy"}


@pytest.mark.parametrize(
    "module",
    [
        "tl_experiments",
        "cli",
        "help",
        "config",
        "strategies.plans",
        "analysis",
        "records",
        "tracking.__main__",
        "tracking.process",
        "commands.syncing",
        "data.pictures",
        "sweeps.sweep",
        "sweeps.expand",
        "tuning.search",
        "cache.listing",
        "training.preflight",
        "analysis.winner",
        "commands.models",
        "commands.predicting",
        "commands.cancelling",
        "commands.logs",
        "commands.status",
        "sweeps.cancelling",
        "sweeps.cluster",
        "sweeps.survey",
        "inference.dataset",
        "inference.folders",
        "inference.inputs",
        "inference.table",
    ],
)
def test_light_modules_import_nothing_heavy(module):
    name = module if module == "tl_experiments" else f"tl_experiments.{module}"
    code = f"import sys, {name}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_the_api_is_lazy():
    code = "import sys; from tl_experiments import run, compare, compose; print('torch' in sys.modules)"
    before = "import sys, tl_experiments; tl_experiments.compose; print('torch' in sys.modules)"
    runs = [
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True) for c in (before, code)
    ]
    assert [run.stdout.strip() for run in runs] == ["False", "True"]
