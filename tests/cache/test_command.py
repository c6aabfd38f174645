"""``tl cache`` as a user meets it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tl_experiments.cache.listing import size_text
from tl_experiments.cache.store import Store, key_of
from tl_experiments.cli import main

FOLDER = Path("outputs", ".cache")
HEAVY = "torch torchvision timm pytorch_lightning torchmetrics sklearn scipy"


@pytest.fixture
def tl(capfd, monkeypatch, tmp_path):
    """Run a command in a folder with a cache; returns exit code, stdout and the last line of stderr."""
    monkeypatch.chdir(tmp_path)
    store = Store(FOLDER, 5_000_000)
    for kind, dataset in (("decoded", "photos"), ("decoded", "\x1b[31mants"), ("features", "photos")):
        table = store.open(key_of(kind, {"dataset": dataset}), 2000, 500, {"kind": kind, "dataset": dataset})
        table.fill(np.arange(250), lambda items: np.zeros((len(items), 2000), np.uint8))
        table.close()

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capfd.readouterr()
        return ended.value.code, captured.out, (captured.err.splitlines() or [""])[-1]

    return call


def test_list_shows_kind_rows_size_and_the_limit(tl):
    code, out, _ = tl("cache", "list")
    head, *rows, total = out.splitlines()
    assert code == 0
    assert head.split() == ["key", "kind", "what", "rows", "size", "last", "used"]
    name = r"(decoded|features)-[0-9a-f]+ +(decoded|features) +dataset (photos|\[31mants)"
    assert all(re.fullmatch(name + r" +250 +502 kB  20\d\d-\d\d-\d\d \d\d:\d\d", row) for row in rows)
    assert re.fullmatch(r"3 tables, 1.51 MB of 5 MB in outputs/.cache", total)


def test_clear_removes_everything_that_is_not_in_use(tl):
    table = Store(FOLDER, 10**9).open(key_of("features", {"dataset": "photos"}), 2000, 500, {"kind": "features"})
    assert "in use" in tl("cache", "list")[1]
    assert tl("cache", "clear") == (0, "removed 2 tables, 1 MB; 1 in use and kept\n", "")
    assert len(table.missing(np.arange(300))) == 50
    code, _, error = tl("cache", "clear", "kind=features")
    assert (code, error) == (
        2,
        "error: kind=features: in use by a running process (1 table) -> wait until it ends",
    )
    table.close()
    assert tl("cache", "clear")[1] == "removed 1 table, 502 kB\n"
    assert tl("cache", "list")[1] == "0 tables, 0 B of 1 GB in outputs/.cache\n"


def test_clear_takes_keys_and_kinds(tl):
    key = key_of("decoded", {"dataset": "photos"})
    assert tl("cache", "clear", key[:12])[1] == "removed 1 table, 502 kB\n"
    assert tl("cache", "clear", "kind=decoded")[1] == "removed 1 table, 502 kB\n"
    assert [entry.about["kind"] for entry in Store(FOLDER, 0).entries()] == ["features"]


def test_another_folder(tl, tmp_path):
    FOLDER.rename(tmp_path / "elsewhere")
    assert tl("cache", "list", "--dir", "elsewhere")[1].splitlines()[-1].endswith(" in elsewhere")
    assert tl("cache", "clear", "--dir", "elsewhere", "kind=decoded")[1] == "removed 2 tables, 1 MB\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["list", "--dir", "nowhere"],
            "error: nowhere: no such folder -> --dir DIR: the feature_cache.dir of the runs",
        ),
        (["clear", "xyz"], r"error: xyz: no table of outputs/.cache fits, kinds: decoded, features -> tl cache list"),
        (["clear", ""], r"error: : no table .*"),
        (["clear", "--all"], r"error: tl cache: unrecognized arguments: --all -> see tl cache --help"),
        (["list", "--dir"], r"error: tl cache list: argument --dir: expected one argument -> see tl cache list --help"),
        (["list", "photos"], r"error: tl cache: unrecognized arguments: photos -> see tl cache --help"),
        (["empty"], r"error: tl cache: argument action: invalid choice: .* -> see tl cache --help"),
    ],
)
def test_what_cannot_be_is_said_and_removes_nothing(arguments, message, tl):
    code, _, error = tl("cache", *arguments)
    assert code == 2
    assert re.fullmatch(message, error)
    assert len(Store(FOLDER, 0).entries()) == 3


@pytest.mark.parametrize("arguments", [["cache", "--help"], ["cache", "list"], ["cache", "clear"]])
def test_it_answers_without_torch(arguments, tl):
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', *sorted(set('{HEAVY}'.split()) & set(sys.modules))))\n"
        f"from tl_experiments.cli import main\nmain({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "HEAVY"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (147_000_000, "147 MB"),
        (5 * 10**10, "50 GB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_are_decimal(size, text):
    assert size_text(size) == text
