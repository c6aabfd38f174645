"""The wheel carries all that a run needs: the configs, and the plugins where Hydra looks for them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tl_experiments.config.compose import conf_dir

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_every_config_file_is_in_it(unpacked):
    files = {path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")}
    packed = unpacked / "tl_experiments" / "conf"
    assert {path.relative_to(packed) for path in packed.rglob("*.yaml")} == files
    assert not (unpacked / "tests").exists()


def test_the_report_is_made_from_it(unpacked, tmp_path):
    code = (
        "import tl_experiments.report.page as p; print(p.__file__);"
        "[p._templates().get_template(n) for n in ('report.html', 'macros.html', 'style.css', 'script.js')]"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(unpacked))


def test_a_sweep_is_composed_from_it(unpacked, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    where = [sys.executable, "-c", "import tl_experiments, hydra_plugins.tl_experiments as p; print(p.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(unpacked))
    command = [sys.executable, "-m", "tl_experiments", "train", "-m", "seed=0,1", "freeze_strategy=full,ful"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2  # our sweeper and our configs answered
    assert done.stderr.endswith("error: freeze_strategy: unknown choice 'ful' -> did you mean full?\n")
