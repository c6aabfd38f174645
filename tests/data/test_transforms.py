"""Pixels compared with timm's; randomness that follows the sample and disturbs nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from tl_experiments.config.augmentations import FlipCrop, NoAugmentation
from tl_experiments.data.transforms import Geometry, eval_transform, sample_seed, seeded, train_transform

GEOMETRY = Geometry(image_size=32, interpolation="bilinear", crop_fraction=0.875)


def _photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _flip_crop(min_area: float = 0.3, flip_probability: float = 0.5) -> FlipCrop:
    return FlipCrop(name="flip_crop", min_area=min_area, flip_probability=flip_probability)


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (101, 57), (57, 101), (500, 20), (33, 32)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(("size", "crop"), [(32, 1.0), (32, 0.875), (31, 0.9), (33, 0.95)])
def test_evaluation_equals_timm(shape: tuple[int, int], interpolation: str, size: int, crop: float) -> None:
    image = _photo(*shape)
    reference = create_transform(size, interpolation=interpolation, crop_pct=crop, normalize=False)(image)
    result = eval_transform(image, Geometry(size, interpolation, crop))  # type: ignore[arg-type]
    assert result.dtype == torch.uint8
    assert result.shape == (3, size, size)
    assert torch.equal(result, reference)  # tolerance 0: the same pixels


def test_the_result_owns_its_memory() -> None:
    image = _photo(32, 32)
    result = eval_transform(image, Geometry(32, "bilinear", 1.0))
    result += 1
    assert not np.array_equal(np.asarray(image).transpose(2, 0, 1), result)


def test_no_augmentation_is_the_evaluation() -> None:
    image = _photo(50, 40)
    transform = train_transform(NoAugmentation(name="none"), GEOMETRY)
    assert torch.equal(transform(image), eval_transform(image, GEOMETRY))


def test_flip_crop_varies_and_follows_its_seed() -> None:
    transform, image = train_transform(_flip_crop(), GEOMETRY), _photo(50, 40)
    results = []
    for seed in (0, 0, 1):
        with seeded(seed):
            results.append(transform(image))
    assert results[0].shape == (3, 32, 32)
    assert results[0].dtype == torch.uint8
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_flip_and_area_are_those_of_the_config(flip_probability: float) -> None:
    image = _photo(32, 32)
    transform = train_transform(_flip_crop(1.0, flip_probability), GEOMETRY)
    expected = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    # a ratio other than 1 does not fit into the whole of a square, and the fallback is the whole
    results = []
    for seed in range(20):
        with seeded(seed):
            results.append(transform(image))
    whole = expected.flip(-1) if flip_probability else expected
    assert any(torch.equal(result, whole) for result in results)


def test_smaller_areas_are_allowed_by_min_area() -> None:
    gradient = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 64, 3)))

    def smallest_span(min_area: float) -> int:
        transform, spans = train_transform(_flip_crop(min_area), GEOMETRY), []
        for seed in range(40):
            with seeded(seed):
                result = transform(gradient).int()
            spans.append(int(result.max() - result.min()))
        return min(spans)

    assert smallest_span(0.05) < 100 < smallest_span(0.8)


def test_sample_seeds_differ_in_every_part() -> None:
    keys = [(s, e, i, v) for s in range(3) for e in range(3) for i in range(20) for v in range(2)]
    keys += [(1, 11, 1, 0), (11, 1, 1, 0), (1, 1, 11, 0)]
    seeds = {sample_seed(*key) for key in keys}
    assert len(seeds) == len(set(keys))
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, 0, 0) == sample_seed(0, 0, 0, 0)


def test_seeded_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded(1):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_seeded_leaves_the_gpus_generator_alone() -> None:
    torch.cuda.manual_seed(7)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(7)
    with seeded(1):
        torch.rand(10)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
