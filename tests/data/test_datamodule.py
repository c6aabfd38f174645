"""From a config to batches: the same in memory, live and in workers, and at whichever step a run is cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tl_experiments.config.augmentations import Augmentation, FlipCrop, NoAugmentation
from tl_experiments.config.datasets import Dataset, Digits, ImageFolder
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.transforms import Geometry, eval_transform
from tl_experiments.errors import DataError
from tl_experiments.types import Batch

NONE = NoAugmentation(name="none")
FLIP_CROP = FlipCrop(name="flip_crop", min_area=0.3, flip_probability=0.5)
GEOMETRY = Geometry(image_size=12, interpolation="bilinear", crop_fraction=1.0)
DigitsCfg = Callable[..., Digits]
FolderCfg = Callable[..., ImageFolder]
MakeFolder = Callable[[Mapping[str, int]], Path]


def _module(cfg: Dataset, augmentation: Augmentation = NONE, **options: Any) -> TransferDataModule:
    defaults = {"seed": 0, "batch_size": 8, "eval_batch_size": 16, "num_workers": 0}
    return TransferDataModule(cfg, augmentation, GEOMETRY, **{**defaults, **options})


def _joined(batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    batches = list(batches)
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "label", "index")}


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[key], right[key]) for key in right)


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    return make_folder({"train/a": 14, "train/b": 12, "val/a": 5, "val/b": 4})


def test_the_spec_says_what_is_used(photos: Path, folder_cfg: FolderCfg) -> None:
    spec = _module(folder_cfg(photos), batch_size=10).spec
    assert spec.classes == ("a", "b")
    assert spec.sizes == {"train": 21, "val": 5, "test": 9}
    assert spec.notes == (
        "No test split: the given val split serves as test.",
        "Carved out of 26 training images: 5 as val (stratified, split_seed 0).",
        "The last batch of an epoch holds 11 images: a single one left over was joined to it.",
    )


def test_the_fingerprint_covers_contents_and_splits_but_not_the_subset(digits_cfg: DigitsCfg) -> None:
    def of(**options: Any) -> str:
        return _module(digits_cfg(**options)).spec.fingerprint

    assert of() == of(shots=3) == of(label_fraction=0.1, subset_seed=3) == of(preload_max_bytes=0)
    assert len({of(), of(split_seed=1), of(val_fraction=0.3), of(test_fraction=0.3)}) == 4


def test_the_fingerprint_follows_the_files(photos: Path, folder_cfg: FolderCfg) -> None:
    before = _module(folder_cfg(photos)).spec.fingerprint
    (photos / "val/b/0.png").write_bytes((photos / "val/a/0.png").read_bytes())
    assert _module(folder_cfg(photos)).spec.fingerprint != before


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("preload", "workers"), [(10**9, 0), (0, 0), (0, 2)], ids=["memory", "live", "workers"])
def test_evaluation_is_in_order_and_complete(
    split: Any, preload: int, workers: int, photos: Path, folder_cfg: FolderCfg
) -> None:
    module = _module(folder_cfg(photos, preload_max_bytes=preload), FLIP_CROP, num_workers=workers, eval_batch_size=4)
    loader = module.eval_loader(split)
    batches = list(loader)
    assert len(loader) == len(batches)
    joined = _joined(batches)
    items = module._source.items
    assert tuple(items[index].id for index in joined["index"]) == module.item_ids(split)
    assert [items[index].label for index in joined["index"]] == joined["label"].tolist()
    assert [tensor.dtype for tensor in joined.values()] == [torch.uint8, torch.int64, torch.int64]
    for image, index in zip(joined["image"], joined["index"].tolist(), strict=True):
        assert torch.equal(image, eval_transform(module._source.load(index), GEOMETRY))


def test_every_image_is_trained_on_once_an_epoch(photos: Path, folder_cfg: FolderCfg) -> None:
    module = _module(folder_cfg(photos))
    steps = module.steps_per_epoch
    assert steps == len(module.train_batches(0, steps)) == 3
    first, second = _joined(module.train_batches(0, steps)), _joined(module.train_batches(steps, 2 * steps))
    assert sorted(first["index"].tolist()) == sorted(second["index"].tolist())
    assert first["index"].tolist() != second["index"].tolist()
    assert {module._source.items[index].id for index in first["index"].tolist()} == set(module.item_ids("train"))


@pytest.mark.parametrize("augmentation", [NONE, FLIP_CROP], ids=lambda a: a.name)
@pytest.mark.parametrize("cuts", [(0, 1, 7), (0, 3, 4, 7), (0, 2, 6, 7)], ids=str)
def test_a_run_cut_at_any_steps_sees_the_same_images(
    augmentation: Augmentation, cuts: tuple[int, ...], photos: Path, folder_cfg: FolderCfg
) -> None:
    whole = _joined(_module(folder_cfg(photos), augmentation).train_batches(0, 7))
    pieces = []
    for first, end in pairwise(cuts):
        pieces += list(_module(folder_cfg(photos), augmentation).train_batches(first, end))
    assert _equal(_joined(pieces), whole)


def test_augmentation_does_not_depend_on_workers(photos: Path, folder_cfg: FolderCfg) -> None:
    here = _joined(_module(folder_cfg(photos), FLIP_CROP).train_batches(0, 6))
    there = _joined(_module(folder_cfg(photos), FLIP_CROP, num_workers=2).train_batches(0, 6))
    assert _equal(here, there)


def test_augmentation_differs_between_epochs_and_seeds(photos: Path, folder_cfg: FolderCfg) -> None:
    def images(seed: int, first: int, end: int) -> torch.Tensor:
        joined = _joined(_module(folder_cfg(photos), FLIP_CROP, seed=seed).train_batches(first, end))
        return joined["image"][joined["index"].argsort()]

    first = images(0, 0, 3)
    for other in (images(0, 3, 6), images(1, 0, 3)):
        assert (first != other).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(first, images(0, 0, 3))


def test_batch_size_does_not_change_the_augmentation(photos: Path, folder_cfg: FolderCfg) -> None:
    joined = [_joined(_module(folder_cfg(photos), FLIP_CROP, batch_size=size).train_batches(0, 1)) for size in (5, 21)]
    position = {index: place for place, index in enumerate(joined[1]["index"].tolist())}
    for image, index in zip(joined[0]["image"], joined[0]["index"].tolist(), strict=True):
        assert torch.equal(image, joined[1]["image"][position[index]])


@pytest.mark.parametrize("preload", [10**9, 0], ids=["memory", "live"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(preload: int, workers: int, photos: Path, folder_cfg: FolderCfg) -> None:
    module = _module(folder_cfg(photos, preload_max_bytes=preload), FLIP_CROP, num_workers=workers)
    before = torch.get_rng_state()
    list(module.train_batches(0, 2))
    list(module.eval_loader("val"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("augmentation", "spare", "expected"),
    [(NONE, 0, 21), (NONE, -1, 42), (FLIP_CROP, 0, 21 + 21 - 9), (FLIP_CROP, 11 * 20 * 16 * 3 + 1008, 21)],
    ids=["fits", "one byte short", "random, 9 originals fit", "random, 21 originals fit"],
)
def test_images_are_kept_where_they_fit_and_do_not_change(
    augmentation: Augmentation, spare: int, expected: int, photos: Path, folder_cfg: FolderCfg
) -> None:
    module = _module(folder_cfg(photos, preload_max_bytes=21 * 3 * 12 * 12 + spare), augmentation)
    assert module.images_decoded == 0
    for _ in range(2):
        list(module.train_batches(0, 3))
    assert module.images_decoded == expected


def test_only_the_splits_that_are_asked_for_are_decoded(photos: Path, folder_cfg: FolderCfg) -> None:
    module = _module(folder_cfg(photos))
    for _ in range(3):
        list(module.eval_loader("val"))
    assert module.images_decoded == 5


def test_batches_from_memory_cost_microseconds(digits_cfg: DigitsCfg) -> None:
    module = _module(digits_cfg(), batch_size=32)
    list(module.train_batches(0, 1))
    start = time.perf_counter()
    count = sum(1 for _ in module.train_batches(0, 1000))
    assert (time.perf_counter() - start) / count < 1e-3  # 3e-5 seen


@pytest.mark.parametrize(("options", "expected"), [({"shots": 3}, 30), ({"label_fraction": 0.1}, 107)])
def test_the_subset_follows_the_runs_seed_unless_it_has_its_own(
    options: dict[str, Any], expected: int, digits_cfg: DigitsCfg
) -> None:
    def ids(seed: int, subset_seed: int | None) -> tuple[str, ...]:
        module = _module(digits_cfg(**options, subset_seed=subset_seed), seed=seed)
        assert module.spec.sizes["train"] == len(module.item_ids("train"))
        return module.item_ids("train")

    assert len(ids(0, None)) == pytest.approx(expected, abs=5)
    assert ids(0, None) != ids(1, None)
    assert ids(0, 5) == ids(1, 5) == ids(5, None)
    assert ids(1, 0) == ids(0, None)


def test_splits_do_not_follow_the_runs_seed(digits_cfg: DigitsCfg) -> None:
    assert _module(digits_cfg(), seed=0).item_ids("test") == _module(digits_cfg(), seed=1).item_ids("test")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("preload", [10**9, 0], ids=["memory", "live"])
def test_a_damaged_image_is_named_wherever_it_is_decoded(
    workers: int, preload: int, photos: Path, folder_cfg: FolderCfg
) -> None:
    (photos / "val/b/2.png").write_text("no image")
    module = _module(folder_cfg(photos, preload_max_bytes=preload), num_workers=workers)
    with pytest.raises(DataError, match=r"val/b/2\.png: cannot be decoded \(no image format .*\) -> replace or remove"):
        list(module.eval_loader("test"))


def test_loaders_can_be_gone_through_again(photos: Path, folder_cfg: FolderCfg) -> None:
    module = _module(folder_cfg(photos, preload_max_bytes=0), FLIP_CROP)
    for loader in (module.train_batches(0, 4), module.eval_loader("val")):
        assert _equal(_joined(loader), _joined(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_real_photos(workers: int, shared_data: Path, folder_cfg: FolderCfg) -> None:
    module = _module(folder_cfg(shared_data / "pacs/photo"), FLIP_CROP, num_workers=workers, batch_size=32)
    assert module.spec.sizes == {"train": 91, "val": 21, "test": 28}
    joined = _joined(module.train_batches(0, module.steps_per_epoch))
    assert joined["image"].shape == (91, 3, 12, 12)
    assert np.array_equal(np.sort(joined["label"].unique()), np.arange(7))
