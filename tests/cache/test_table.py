"""One table: what is read is what was made, and damage is found."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.cache.warm import rows_of
from tl_experiments import interrupt
from tl_experiments.cache import table as table_module
from tl_experiments.cache.locks import signature, try_hold
from tl_experiments.cache.segments import range_end
from tl_experiments.cache.store import Store
from tl_experiments.cache.table import Table, fill_together
from tl_experiments.errors import StorageError
from tl_experiments.interrupt import Interrupted
from tl_experiments.training.ending import how_it_ended

BYTES = 100


def _open(store: Store, key: str = "rows", row_bytes: int = BYTES, rows: int = 20_000) -> Table:
    table = store.open(key, row_bytes, rows, {"kind": "test"})
    assert table is not None
    return table


class Maker:
    """Makes rows and counts them."""

    def __init__(self, row_bytes: int = BYTES) -> None:
        self.row_bytes, self.calls = row_bytes, []

    def __call__(self, items: np.ndarray) -> np.ndarray:
        self.calls.append(items.tolist())
        return rows_of(items, self.row_bytes)


def test_rows_come_in_the_order_asked_for(store):
    table, make = _open(store), Maker()
    asked = np.random.default_rng(0).permutation(20_000)[:7_000]
    assert table.fill(asked, make) == 7_000
    assert sorted(item for call in make.calls for item in call) == sorted(asked.tolist())
    for items in (asked, asked[::-1], np.sort(asked), asked[[5, 5, 3]], asked[:1], asked[:0]):
        assert np.array_equal(table.read(items), rows_of(items, BYTES))
    out = np.zeros((len(asked), BYTES), np.uint8)
    assert table.read(asked, out) is out
    assert np.array_equal(out, rows_of(asked, BYTES))


def test_only_what_is_missing_is_made(store):
    table, make = _open(store), Maker()
    table.fill(np.array([4, 9, 300]), make)
    assert table.missing(np.array([300, 8, 4, 8, 12_000])).tolist() == [8, 12_000]
    assert table.fill(np.array([3, 4, 9, 10, 9]), make) == 2
    assert make.calls == [[4, 9], [300], [3, 10]]
    again = _open(store)
    assert again.fill(np.array([300, 10]), make) == 0
    assert np.array_equal(again.read(np.array([10, 300])), rows_of(np.array([10, 300]), BYTES))


def test_a_table_sees_what_another_process_made_meanwhile(store):
    one, other = _open(store), _open(store)
    one.fill(np.arange(5), Maker())
    assert np.array_equal(other.read(np.arange(5)), rows_of(np.arange(5), BYTES))
    with pytest.raises(LookupError, match="no row of item 5"):
        other.read(np.arange(7))


def test_ranges_are_shared_out_and_stay_few():
    def ends(rows: int) -> list[int]:
        found, first = [], 0
        while first < rows:
            found.append(first := range_end(first))
        return found

    assert ends(1000) == [128, 256, 384, 512, 640, 768, 896, 1024]
    assert len(ends(50_000)) < 160
    assert len(ends(2_000_000)) < 350
    assert np.diff(ends(2_000_000)).min() >= 64


def test_large_rows_are_made_in_pieces(store):
    row_bytes = 2 << 20
    table, make = _open(store, row_bytes=row_bytes, rows=40), Maker(row_bytes)
    table.fill(np.arange(40), make)
    assert [len(call) for call in make.calls] == [32, 8]  # 64 MiB each at most


def test_what_make_raises_leaves_nothing_half_written(store):
    table = _open(store)

    def make(items: np.ndarray) -> np.ndarray:
        if items[0] >= 128:
            raise KeyError("a bad image")
        return rows_of(items, BYTES)

    with pytest.raises(KeyError, match="a bad image"):
        table.fill(np.arange(200), make)
    assert table.missing(np.arange(200)).tolist() == list(range(128, 200))
    assert table.fill(np.arange(200), Maker()) == 72  # the lock was given back


def test_several_tables_are_filled_by_one_make(store):
    small, large = _open(store, "small", 10), _open(store, "large", 30)
    calls = []

    def make(items: np.ndarray) -> list[np.ndarray]:
        calls.append(items.tolist())
        return [rows_of(items, 10), rows_of(items, 30)]

    small.fill(np.array([1, 2]), Maker(10))
    assert fill_together([small, large], np.arange(4), make, store.locks("both")) == 4
    assert fill_together([small, large], np.arange(4), make, store.locks("both")) == 0
    assert calls == [[0, 1, 2, 3]]
    for table in (small, large):
        assert np.array_equal(table.read(np.arange(4)), rows_of(np.arange(4), table.row_bytes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    ],
    ids=["torn", "empty", "longer", "garbage"],
)
def test_a_damaged_segment_is_named_and_made_again(damage, store, caplog):
    table = _open(store)
    table.fill(np.arange(300), Maker())
    table.close()
    victim = next(table.folder.glob("*128-128-*.rows"))
    damage(victim)
    again, make = _open(store), Maker()
    with caplog.at_level(logging.WARNING):
        assert again.fill(np.arange(300), make) == 128
    assert make.calls == [list(range(128, 256))]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [f"{victim} is damaged"]
    assert np.array_equal(again.read(np.arange(300)), rows_of(np.arange(300), BYTES))


def test_orphaned_temporaries_are_no_data_and_go_when_they_are_old(store):
    table = _open(store)
    table.fill(np.arange(3), Maker())
    whole = next(table.folder.glob("*.rows"))
    with subprocess.Popen(["true"]) as process:
        killed = table.folder / f".{whole.name}.{signature().replace(str(os.getpid()), str(process.pid))}.tmp"
    mine = table.folder / f".{whole.name}.{signature()}.tmp"
    for path in (killed, mine):
        shutil.copy(whole, path)
    fresh, old = (table.folder / f".{name}-{whole.name}.tmp" for name in ("fresh", "old"))
    for path in (fresh, old):
        shutil.copy(whole, path)
    os.utime(old, (time.time() - 3600,) * 2)
    assert _open(store).missing(np.arange(5)).tolist() == [3, 4]
    assert fresh.exists()
    assert mine.exists()
    assert not old.exists()
    assert not killed.exists()


def test_a_full_disk_is_one_line_and_costs_no_row_that_was_there(store, monkeypatch):
    table = _open(store)
    table.fill(np.arange(5), Maker())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    expected = r"rows: cannot be written \(No space left on device\) -> free some space"
    with pytest.raises(StorageError, match=expected) as error:
        table.fill(np.arange(10), Maker())
    assert how_it_ended(error.value)[0] == "interrupted"  # the same command goes on
    monkeypatch.undo()
    assert list(table.folder.glob(".*")) == []
    again = _open(store)
    assert np.array_equal(again.read(np.arange(5)), rows_of(np.arange(5), BYTES))
    assert again.fill(np.arange(10), Maker()) == 5


def test_a_signal_ends_the_wait_for_another_process(store):
    table = _open(store)
    with try_hold(table.folder / "locks" / f"{0:010d}.lock"), _signalled(), pytest.raises(Interrupted):
        table.fill(np.arange(5), Maker())


def test_a_signal_ends_filling_between_pieces(store):
    table = _open(store)

    def make(items: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGTERM)
        return rows_of(items, BYTES)

    with interrupt.installed(), interrupt.postponed(), pytest.raises(Interrupted):
        table.fill(np.arange(1000), make)
    assert table.missing(np.arange(1000)).tolist() == list(range(128, 1000))


def test_a_signal_ends_the_wait_for_the_store(store):
    _open(store)
    with try_hold(store.folder / ".lock"), _signalled(), pytest.raises(Interrupted):
        _open(store)


@contextmanager
def _signalled() -> Iterator[None]:
    """A signal has come where it is only noted; two seconds later another one would end a wait that did not see it."""
    with interrupt.installed(), interrupt.postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        started = time.monotonic()
        waiting = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
        waiting.start()
        try:
            yield
        finally:
            waiting.cancel()
            assert time.monotonic() - started < 1.5


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_small_disk_runs_full(small_disk):
    table = Table(small_disk / "rows", 10_000, "{}")
    with pytest.raises(StorageError, match="No space left on device"):
        table.fill(np.arange(1000), Maker(10_000))
    kept = 1000 - len(table.missing(np.arange(1000)))
    assert kept == 128
    assert np.array_equal(table.read(np.arange(kept)), rows_of(np.arange(kept), 10_000))
    assert list((small_disk / "rows").glob(".*")) == []


def test_threads_read_and_fill_one_table(store, monkeypatch):
    monkeypatch.setattr(table_module, "_MOST_MAPS", 4)  # fewer than there are segments
    table = _open(store)

    def work(seed: int) -> bool:
        items = np.random.default_rng(seed).permutation(3000)[:1000]
        table.fill(items, lambda chosen: rows_of(chosen, BYTES))
        return all(np.array_equal(table.read(part), rows_of(part, BYTES)) for part in np.split(items, 20))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(work, range(12)))


def test_rows_stay_readable_when_the_folder_vanishes(store):
    table = _open(store)
    table.fill(np.arange(300), Maker())
    shutil.rmtree(store.folder)
    assert np.array_equal(table.read(np.arange(300)), rows_of(np.arange(300), BYTES))
    assert table.fill(np.arange(310), Maker()) == 10  # and the new ones go into a folder that is a table again
    assert [entry.rows for entry in store.entries()] == [10]
