"""How a prefix is put to work: batch by device, compiled where it pays, rows from held or pinned memory alike."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.data.device import Room
from tl_experiments.features import activations, encoding, memory_table
from tl_experiments.features.activations import Activations
from tl_experiments.features.encoding import compiled, compiling_pays, encoding_batch
from tl_experiments.features.memory_table import MemoryTable
from tl_experiments.features.rows import columns_of, row_bytes
from tl_experiments.features.split import split
from tl_experiments.types import Phase

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "images", "pays"),
    [(CPU, 10**7, False), (CUDA, 20_000, False), (CUDA, 20_001, True), (torch.device("cuda", 1), 10**6, True)],
)
def test_only_many_images_on_a_gpu_are_worth_compiling(device: torch.device, images: int, pays: bool) -> None:
    assert compiling_pays(device, images) is pays


def test_a_gpu_encodes_larger_batches() -> None:
    assert (encoding_batch(CPU), encoding_batch(CUDA)) == (32, 256)


def _cut(model_of: Any) -> Any:
    model = model_of("test_resnet", 32)
    phase = Phase(0.0, dict.fromkeys(model.layout.head.parameters, 1.0))
    model.begin(phase)
    model.eval()
    return split(model, phase)


def _images(n: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))


def test_a_compiled_prefix_gives_what_the_prefix_gives(model_of: Any) -> None:
    """One graph for all batches; ``eager`` runs what was traced with the same kernels."""
    cut, traced = _cut(model_of), 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal traced
        traced += 1
        return graph.forward

    fast = compiled(cut.prefix, backend)  # type: ignore[arg-type]
    with torch.no_grad():
        for images in _images(12).split(4):
            for one, other in zip(fast(images), cut.prefix(images), strict=True):
                assert torch.equal(one, other)
    assert traced >= 1


def test_where_compiling_fails_the_prefix_goes_on(model_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    cut = _cut(model_of)

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C compiler\nand more")

    fast = compiled(cut.prefix, broken)  # type: ignore[arg-type]
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger=encoding.__name__):
        for images in _images(8).split(4):
            assert torch.equal(fast(images)[0], cut.prefix(images)[0])
    (line,) = caplog.messages
    assert "without torch.compile" in line
    assert "\n" not in line


def test_running_out_of_memory_is_no_reason_to_go_on(model_of: Any) -> None:
    def full(graph: Any, inputs: Any) -> Any:
        def call(*_: Any) -> Any:
            raise torch.OutOfMemoryError("full")

        return call

    fast = compiled(_cut(model_of).prefix, full)  # type: ignore[arg-type]
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        fast(_images(4))


@pytest.mark.parametrize("hold_bytes", [0, 10**9], ids=["read", "held"])
def test_rows_do_not_depend_on_what_was_asked_with_them(
    hold_bytes: int, model_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of a few rows to the device, and in encodings cut at other places."""
    monkeypatch.setattr(activations, "_PIECE_BYTES", 3000)
    cut, images = _cut(model_of), _images(70)
    columns = columns_of(cut.prefix(images[:2]))

    def rows(*asked: list[int]) -> Activations:
        found = Activations(
            MemoryTable(row_bytes(columns)),
            columns,
            cut.prefix,
            lambda items: images[items],
            nullcontext,
            CPU,
            Room(hold_bytes),
        )
        for items in asked:
            found.ensure(np.array(items))
        return found

    whole = rows(list(range(70)))
    parts = rows([0, 69, 4], list(range(40)), list(range(70)))
    order = np.array([69, 0, 5, 41, 40])
    assert torch.equal(whole.batch(order)[0], parts.batch(order)[0])
    expected = torch.cat([cut.prefix(images[:32])[0][5:6], cut.prefix(images[32:64])[0][8:10]])
    assert torch.equal(whole.batch(np.array([5, 40, 41]))[0], expected)
    assert (whole.encoded, parts.encoded) == (70, 70)


class _Counted:
    """Images of 12 pixels that count how many are asked for at once; the prefix gives their means."""

    def __init__(self, n: int, row_bytes: int = 4) -> None:
        self.images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 2, 2), dtype=np.uint8))
        self.asked: list[int] = []
        column = columns_of([torch.zeros(1, row_bytes // 4)])
        self.kept = Activations(MemoryTable(row_bytes), column, self._means, self._some, nullcontext, CPU, Room(0))

    def _means(self, images: Tensor) -> tuple[Tensor]:
        columns = self.kept.columns[0].shape[0]
        return (images.float().flatten(1).mean(1, keepdim=True).expand(-1, columns),)

    def _some(self, items: Any) -> Tensor:
        self.asked.append(len(items))
        return self.images[torch.from_numpy(items)]


def test_few_images_are_in_memory_at_once() -> None:
    """However many are missing, and in whatever order they come."""
    counted = _Counted(1000)
    for items in (np.arange(700, 1000), np.arange(0, 1000, 3), np.arange(1000)):
        counted.kept.ensure(items)
    assert max(counted.asked) == 4 * encoding_batch(CPU)
    assert sum(counted.asked) == 1000
    items = np.random.default_rng(1).permutation(1000)
    found = counted.kept.batch(items)[0].numpy().ravel()
    np.testing.assert_allclose(found, counted.images.numpy().reshape(1000, -1).mean(1)[items], rtol=1e-6)


def test_few_rows_are_made_at_once_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_table, "_PIECE_BYTES", 2048)
    table, made = MemoryTable(4), []

    def make(items: Any) -> Any:
        made.append(len(items))
        return items.astype("<u4").view(np.uint8).reshape(-1, 4)

    assert table.fill(np.arange(1, 2000, 2), make) == 1000
    assert table.fill(np.arange(2000), make) == 1000
    assert max(made) == 512
    assert table.read(np.arange(2000)).view("<u4").ravel().tolist() == list(range(2000))


def test_a_signal_ends_it_before_more_images_are_asked_for() -> None:
    counted = _Counted(1000)

    def signalled(images: Tensor) -> tuple[Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return counted._means(images)

    counted.kept.prefix = signalled
    with interrupt.installed(), interrupt.postponed(), pytest.raises(interrupt.Interrupted):
        counted.kept.ensure(np.arange(1000))
    assert counted.asked == [4 * encoding_batch(CPU)]


def test_tables_of_a_phase_share_the_room_and_give_it_back() -> None:
    room = Room(1000)
    first, second = _Counted(200), _Counted(200)
    for one in (first, second):
        one.kept.room = room
        one.kept.ensure(np.arange(100))
    assert room.left == 200
    for number, left in ((150, 0), (200, 600)):  # all that were asked for are held, or none
        first.kept.ensure(np.arange(number))
        assert room.left == left
    for one in (first, second):
        found = one.kept.batch(np.arange(100))[0].numpy().ravel()
        np.testing.assert_allclose(found, one.images.numpy().reshape(200, -1).mean(1)[:100], rtol=1e-6)
    second.kept.close()
    assert room.left == 1000
    assert second.kept.encoded == 100
    assert second.kept.table.fill(np.arange(3), lambda items: np.zeros((3, 4), np.uint8)) == 3
