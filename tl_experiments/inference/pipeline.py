"""Many images through a model: decoded in threads beside the forward pass, and kept in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tl_experiments.data.items import Picture
from tl_experiments.data.originals import decoding_threads
from tl_experiments.errors import ConfigError, DataError
from tl_experiments.inference.loaded import LoadedModel

_BATCHES_AHEAD = 2  # decoded while one is computed: a few slow files do not starve the model


@dataclass(frozen=True)
class Outputs:
    """What a model said of ``n`` images.

    Args:
        probabilities: float64 ``(n, n_classes)``; NaN where the image could not be read.
        errors: Position -> why, of those.
    """

    probabilities: NDArray[np.float64]
    errors: dict[int, DataError]


def run_through(model: LoadedModel, load: Callable[[int], Picture], n: int, batch_size: int) -> Outputs:
    """Predict images ``0`` to ``n - 1``; one that cannot be read costs only itself.

    Args:
        model: Whose preprocessing they go through.
        load: Number of an image -> the picture, or a DataError; called from several threads.
        n: 0 or more.
        batch_size: Images of a forward pass.

    Raises:
        ConfigError: A batch does not fit into the device's memory.
    """
    probabilities = np.full((n, len(model.classes)), np.nan)
    errors: dict[int, DataError] = {}
    positions: list[int] = []
    images: list[Tensor] = []

    def compute() -> None:
        try:
            probabilities[positions] = model.probabilities(torch.stack(images))
        except torch.OutOfMemoryError:
            fix = f"--batch-size {max(1, batch_size // 2)}, or --device cpu"
            raise ConfigError("--batch-size", f"{batch_size} images do not fit into the GPU's memory", fix) from None
        positions.clear()
        images.clear()

    for position, image in enumerate(_decoded(model, load, n, batch_size * _BATCHES_AHEAD)):
        if isinstance(image, DataError):
            errors[position] = image
            continue
        positions.append(position)
        images.append(image)
        if len(images) == batch_size:
            compute()
    if images:
        compute()
    return Outputs(probabilities, errors)


def _decoded(model: LoadedModel, load: Callable[[int], Picture], n: int, ahead: int) -> Iterator[Tensor | DataError]:
    def prepare(position: int) -> Tensor | DataError:
        try:
            return model.prepare(load(position))
        except DataError as error:
            return error

    with ThreadPoolExecutor(decoding_threads()) as threads:
        waiting: deque[Future[Tensor | DataError]] = deque()
        try:
            for position in range(n):
                waiting.append(threads.submit(prepare, position))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
