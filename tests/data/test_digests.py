"""Digests of files are remembered, and never believed once a file looks touched."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tl_experiments.config.augmentations import NoAugmentation
from tl_experiments.config.datasets import ImageFolder
from tl_experiments.data import digests
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.digests import file_digests
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.sources import open_source
from tl_experiments.data.transforms import Geometry
from tl_experiments.errors import DataError

PATHS = ("a.bin", "b.bin", "c.bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "files"
    root.mkdir()
    for path in PATHS:
        (root / path).write_text(path * 10)
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose contents are hashed, as it happens; and files count as settled at once."""
    seen: list[str] = []
    real = hashlib.file_digest

    def counted(stream, name):
        seen.append(Path(getattr(stream, "name", "decoded as well")).name)
        return real(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))
    return seen


def _expected(root: Path) -> list[bytes]:
    return [hashlib.sha256((root / path).read_bytes()).digest() for path in PATHS]


def test_a_second_job_reads_no_file(folder, read, tmp_path):
    memory = tmp_path / "memory"
    assert file_digests(folder, PATHS, memory) == _expected(folder)
    assert sorted(read) == sorted(PATHS)
    read.clear()
    assert file_digests(folder, PATHS, memory) == _expected(folder)
    assert read == []
    assert file_digests(folder, PATHS, None) == _expected(folder)
    assert sorted(read) == sorted(PATHS)


def _rewrite(path: Path) -> None:
    """Other contents of the same size in the same file, with the old time of change set by hand."""
    status = path.stat()
    path.write_text("x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("y" * path.stat().st_size)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [_rewrite, _replace, lambda path: path.write_text("longer" * 99)])
def test_a_changed_file_is_read_again(change, folder, read, tmp_path):
    file_digests(folder, PATHS, tmp_path / "memory")
    read.clear()
    change(folder / "b.bin")
    for _ in range(2):
        assert file_digests(folder, PATHS, tmp_path / "memory") == _expected(folder)
    assert read == ["b.bin"]


def test_a_file_that_changed_a_moment_ago_is_not_remembered(folder, read, tmp_path, monkeypatch):
    """It could change again within the resolution of its time stamp."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 60 * 10**9)
    for _ in range(2):
        file_digests(folder, PATHS, tmp_path / "memory")
    assert sorted(read) == sorted(2 * PATHS)


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"zz": [1]}}', '{"files": []}'])
def test_a_damaged_memory_is_no_memory(content, folder, read, tmp_path):
    memory = tmp_path / "memory"
    file_digests(folder, PATHS, memory)
    (file,) = memory.iterdir()
    file.write_text(content)
    assert file_digests(folder, PATHS, memory) == _expected(folder)
    assert len(json.loads(file.read_text())["files"]) == 3


def test_a_memory_that_cannot_be_written_is_no_error(folder, read, tmp_path):
    (tmp_path / "memory").write_text("a file")
    assert file_digests(folder, PATHS, tmp_path / "memory") == _expected(folder)


def test_a_memory_that_finds_no_room_is_no_error(folder, tmp_path, full_disk):
    assert file_digests(folder, PATHS, tmp_path / "memory") == _expected(folder)
    assert list((tmp_path / "memory").iterdir()) == []


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "b.bin").unlink()
    with pytest.raises(DataError, match=r"b.bin: cannot be read \(No such file or directory\) -> replace"):
        file_digests(folder, PATHS, tmp_path / "memory")


def test_a_second_run_reads_no_image_for_its_fingerprint(
    make_folder: Callable[[Mapping[str, int]], Path], folder_cfg: Callable[..., ImageFolder], read, tmp_path
):
    cfg = folder_cfg(make_folder({"train/a": 6, "train/b": 5}))
    options = {"seed": 0, "batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    none, geometry = NoAugmentation(name="none"), Geometry(12, "bilinear", 1.0)

    def fingerprint(memory: Path | None) -> str:
        source = open_source(cfg, digests=memory)
        return TransferDataModule(cfg, none, geometry, **options, source=source).spec.fingerprint

    assert len({fingerprint(tmp_path / "memory"), fingerprint(tmp_path / "memory"), fingerprint(None)}) == 1
    assert len(read) == 2 * 11


def test_a_folder_of_images_keeps_its_fingerprint(
    make_folder: Callable[[Mapping[str, int]], Path], read, tmp_path, monkeypatch
):
    root = make_folder({"a": 3, "b": 4})
    plain = open_image_folder(str(root), False).fingerprint
    assert [open_image_folder(str(root), False, digests=tmp_path / "memory").fingerprint for _ in range(2)] == [
        plain
    ] * 2
    assert len(read) == 14  # seven images without a memory, seven for the first use of it, none for the second
    opened: list[str] = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    open_image_folder(str(root), False, digests=tmp_path / "memory").fingerprint  # noqa: B018
    assert not [path for path in opened if path.endswith(".png")]
