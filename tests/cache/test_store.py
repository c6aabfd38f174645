"""The store: a limit, who makes room for whom, and what is never removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tl_experiments.cache.store import Store, key_of, limit_of

ABOUT = {"kind": "test", "dataset": "photos"}
BYTES, ROWS = 10_000, 100  # a table is 1 MB


@pytest.fixture
def small(tmp_path: Path) -> Store:
    """Room for three tables."""
    return Store(tmp_path / "cache", 3_100_000)


def _fill(store: Store, key: str, age_s: float = 0.0) -> None:
    table = store.open(key, BYTES, ROWS, ABOUT)
    assert table is not None
    table.fill(np.arange(ROWS), lambda items: np.zeros((len(items), BYTES), np.uint8))
    table.close()
    os.utime(table.folder / "about.json", (time.time() - age_s,) * 2)


def _keys(store: Store) -> list[str]:
    return sorted(entry.key for entry in store.entries())


def test_an_entry_says_what_is_there(small):
    _fill(small, "a")
    (entry,) = small.entries()
    assert (entry.key, entry.rows, entry.row_bytes, entry.in_use) == ("a", ROWS, BYTES, False)
    assert entry.about == ABOUT
    assert entry.size_bytes == sum(path.stat().st_size for path in (small.folder / "a").glob("*.*"))
    assert limit_of(small.folder) == 3_100_000
    table = small.open("a", BYTES, ROWS, ABOUT)
    assert small.entries()[0].in_use
    del table
    assert not small.entries()[0].in_use


def test_what_was_used_least_recently_makes_room(small):
    for key, age in (("b", 30), ("a", 20), ("c", 10)):
        _fill(small, key, age)
    small.open("b", BYTES, ROWS, ABOUT).close()  # which makes a the oldest
    _fill(small, "d")
    assert _keys(small) == ["b", "c", "d"]


def test_what_is_in_use_stays(small):
    for key, age in (("a", 30), ("b", 20), ("c", 10)):
        _fill(small, key, age)
    used = [small.open(key, BYTES, ROWS, ABOUT) for key in ("a", "b")]
    assert small.open("d", BYTES, ROWS, ABOUT) is not None
    assert _keys(small) == ["a", "b", "d"]
    assert Store(small.folder, small.max_bytes).open("e", BYTES, 2 * ROWS, ABOUT) is None
    assert {"a", "b"} < set(_keys(small))  # and nothing goes for what would not fit anyway
    assert all(np.array_equal(table.read(np.arange(3)), np.zeros((3, BYTES))) for table in used)


def test_room_that_an_open_table_was_promised_is_taken(small):
    empty = small.open("a", BYTES, 2 * ROWS, ABOUT)
    assert small.open("b", BYTES, 2 * ROWS, ABOUT) is None
    assert small.open("b", BYTES, ROWS, ABOUT) is not None
    empty.close()


@pytest.mark.parametrize("max_bytes", [0, 1000, BYTES * ROWS])
def test_a_store_that_is_too_small_gives_none(max_bytes, tmp_path):
    assert Store(tmp_path / "cache", max_bytes).open("a", BYTES, ROWS, ABOUT) is None


def test_more_than_the_disk_has_gives_none(tmp_path):
    assert Store(tmp_path / "cache", 10**18).open("a", 10**6, 10**10, ABOUT) is None


def test_a_folder_that_cannot_be_written_gives_none(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert Store(tmp_path / "cache", 10**9).open("a", BYTES, ROWS, ABOUT) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'cache'} cannot be written (File exists): nothing is cached"
    ]


def test_a_full_disk_gives_none(tmp_path, caplog, full_disk):
    assert Store(tmp_path / "cache", 10**9).open("a", BYTES, ROWS, ABOUT) is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{tmp_path / 'cache'} cannot be written (no space is left, ")


@pytest.mark.parametrize("content", ["old", "[]", "", None], ids=["old", "list", "empty", "missing"])
def test_another_format_is_as_good_as_nothing(content, small):
    _fill(small, "a")
    file = small.folder / "a" / "about.json"
    if content is None:
        file.unlink()
    elif content == "old":
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 0}))
        assert [entry.about["kind"] for entry in small.entries()] == ["of another version"]
    else:
        file.write_text(content)
    table = small.open("a", BYTES, ROWS, ABOUT)
    assert len(table.missing(np.arange(ROWS))) == ROWS
    assert json.loads(file.read_text())["about"] == ABOUT


def test_folders_that_are_no_tables_are_never_touched(small):
    """A mistyped feature_cache.dir may be a folder full of other things."""
    _fill(small, "a")
    for folder, content in (("photos", "{}"), ("notes", '{"format": 1}'), (".git", "[]")):
        (small.folder / folder).mkdir()
        (small.folder / folder / "about.json").write_text(content)
    assert [entry.key for entry in small.clear()] == ["a"]
    for key in "bcde":
        _fill(small, key)
    assert {"photos", "notes", ".git"} <= {path.name for path in small.folder.iterdir()}


def test_a_killed_process_uses_nothing(small):
    _fill(small, "a")
    program = (
        "import os; from pathlib import Path; from tl_experiments.cache.store import Store\n"
        f"table = Store(Path({str(small.folder)!r}), {small.max_bytes}).open('a', {BYTES}, {ROWS}, {{}})\n"
        "print(*Path(table.folder, 'uses').iterdir(), flush=True); input(); os.kill(os.getpid(), 9)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert Path(process.stdout.readline().strip()).exists()
        assert small.clear() == []
        process.stdin.write("\n")
    table = small.open("a", BYTES, ROWS, ABOUT)
    assert len(list((table.folder / "uses").iterdir())) == 1  # what the killed one left is gone
    table.close()
    assert [entry.key for entry in small.clear()] == ["a"]
    assert _keys(small) == []


def test_clear_removes_what_is_chosen_and_not_in_use(small):
    for key in ("a", "b", "c"):
        _fill(small, key)
    table = small.open("b", BYTES, ROWS, ABOUT)
    assert [entry.key for entry in small.clear(lambda entry: entry.key in ("a", "b"))] == ["a"]
    assert _keys(small) == ["b", "c"]
    table.close()
    assert len(small.clear()) == 2
    assert list(small.folder.glob(".*")) == []


def test_no_two_names_share_a_key():
    parts = ["a", "A", "a b", "a/b", "../a", "a\n", "é", "", "a" * 300, '"', "\udcff"]
    ingredients = [{"x": left, "y": right} for left in parts for right in parts]
    ingredients += [{"x": left} for left in parts] + [{"y": left} for left in parts]
    keys = {key_of(kind, entry) for kind in ("decoded", "features") for entry in ingredients}
    assert len(keys) == 2 * len(ingredients)
    assert len({key.lower() for key in keys}) == len(keys)
    assert key_of("decoded", {"x": "1", "y": "2"}) == key_of("decoded", {"y": "2", "x": "1"})


@pytest.mark.parametrize("key", ["", "../a", "a/b", ".a", "A", "a b", "a" * 121, "a\n"])
def test_a_key_that_is_no_safe_name_is_refused(key, small):
    with pytest.raises(ValueError, match="expected lower-case letters"):
        small.open(key, BYTES, ROWS, ABOUT)
