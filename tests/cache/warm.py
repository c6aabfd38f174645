"""A process that fills a table and writes down, in a file of its own, each row that it makes.

``python -m tests.cache.warm STORE FOLDER ROWS ROW_BYTES SECONDS_A_PIECE`` begins when the file FOLDER/go is there.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import numpy as np

from tl_experiments.cache.store import Store


def rows_of(items: np.ndarray, row_bytes: int) -> np.ndarray:
    """What stands in each row: a row of another item differs in every byte."""
    steps = np.arange(row_bytes, dtype=np.int64)
    return ((items[:, None] * 7 + steps * 3 + (items[:, None] >> 5)) % 251).astype(np.uint8)


def main() -> None:
    store, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rows, row_bytes, seconds = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    fcntl.flock = lambda *_: None  # as on a file system that ignores it
    fcntl.lockf = lambda *_: None
    log = (folder / f"made-{os.getpid()}").open("a")

    def make(items: np.ndarray) -> np.ndarray:
        (folder / f"making-{os.getpid()}").touch()
        time.sleep(seconds)
        log.writelines(f"{item}\n" for item in items)
        log.flush()
        return rows_of(items, row_bytes)

    (folder / f"ready-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    table = Store(store, 10**9).open("rows", row_bytes, rows, {"kind": "test"})
    assert table is not None
    table.fill(np.random.default_rng(os.getpid()).permutation(rows), make)
    assert np.array_equal(table.read(np.arange(rows)), rows_of(np.arange(rows), row_bytes))


if __name__ == "__main__":
    main()
