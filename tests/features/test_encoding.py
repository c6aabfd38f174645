"""How a prefix is put to work: batch by device, compiled where it pays, rows from held or pinned memory alike."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tl_experiments.features import activations, encoding
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
            hold_bytes,
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
