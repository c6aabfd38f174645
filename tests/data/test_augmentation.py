"""Augmentations of images and of batches: torchvision's with the same draws, whatever the workers and cuts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms as v1
from torchvision.transforms import v2

from tl_experiments.config.augmentations import CutMix, FlipCrop, MixUp, RandAugment, Trivial
from tl_experiments.config.datasets import ImageFolder
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.mixing import mix
from tl_experiments.data.transforms import Geometry, seeded, train_transform
from tl_experiments.types import Batch

CROP: Any = {"min_area": 0.3, "flip_probability": 0.5}
ALL: list[Any] = [
    FlipCrop(name="flip_crop", **CROP),
    Trivial(name="trivial", **CROP),
    RandAugment(name="randaugment", num_ops=2, magnitude=9, **CROP),
    MixUp(name="mixup", alpha=0.8, **CROP),
    CutMix(name="cutmix", alpha=1.0, **CROP),
]
MIXING = ALL[3:]
GEOMETRY = Geometry(24, "bicubic", 1.0)
MakeFolder = Callable[..., Path]
FolderCfg = Callable[..., ImageFolder]


def _batch(n: int = 6, channels: int = 3) -> Batch:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, channels, 10, 12), dtype=np.uint8))
    return {"image": image, "label": torch.arange(n) % 4, "index": torch.arange(n)}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: a.name)
def test_images_are_torchvisions_with_the_same_draws(augmentation: Any, mode: str) -> None:
    """Crop and flip against the first version of its transforms, which draws in the same order."""
    bilinear = v2.InterpolationMode.BILINEAR
    reference = v1.Compose(
        [
            v1.RandomResizedCrop(24, scale=(0.3, 1.0), interpolation=v1.InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(0.5),
            *([v2.TrivialAugmentWide(interpolation=bilinear)] if augmentation.name == "trivial" else []),
            *([v2.RandAugment(2, 9, interpolation=bilinear)] if augmentation.name == "randaugment" else []),
            v1.PILToTensor(),
        ]
    )
    transform = train_transform(augmentation, GEOMETRY)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).convert(mode)
    for seed in range(40):
        with seeded(seed):
            result = transform(photo)
        with seeded(seed):
            expected = reference(photo)
        assert result.dtype == torch.uint8
        assert torch.equal(result, expected)


def _with_share(monkeypatch: pytest.MonkeyPatch, share: float, corner: tuple[int, int] = (0, 0)) -> None:
    """Fix what torchvision draws."""
    drawn = iter(corner)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor([share]))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(drawn)]))


def test_mixup_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, share = _batch(), 0.3
    _with_share(monkeypatch, share)
    mixed = mix(batch, 4, MIXING[0], seed=0, step=0)
    image, onehot = batch["image"].double().numpy(), np.eye(4)[batch["label"]]
    np.testing.assert_allclose(mixed["image"], share * image + 0.7 * np.roll(image, 1, 0), rtol=1e-5)
    np.testing.assert_allclose(mixed["target"], share * onehot + 0.7 * np.roll(onehot, 1, 0), rtol=1e-5)
    assert mixed["image"].dtype == torch.float32
    assert torch.equal(mixed["label"], batch["label"])


def test_cutmix_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, share = _batch(), 0.75
    _with_share(monkeypatch, share, corner=(11, 4))  # near the right border, which cuts the rectangle
    mixed = mix(batch, 4, MIXING[1], seed=0, step=0)
    # sides are sqrt(1 - share) of the image's: 12 and 10 wide by half, that is 3 and 2 to each side of the centre
    inside = np.zeros((10, 12), dtype=bool)
    inside[4 - 2 : 4 + 2, 11 - 3 : 12] = True
    image, onehot = batch["image"].numpy(), np.eye(4)[batch["label"]]
    assert np.array_equal(mixed["image"], np.where(inside, np.roll(image, 1, 0), image))
    kept = 1 - inside.mean()
    np.testing.assert_allclose(mixed["target"], kept * onehot + (1 - kept) * np.roll(onehot, 1, 0), rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("augmentation", MIXING, ids=lambda a: a.name)
def test_mixing_is_torchvisions_and_follows_seed_and_step(augmentation: Any, channels: int) -> None:
    batch = _batch(channels=channels)
    seen = [mix(batch, 4, augmentation, seed, step) for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    for mixed in seen:
        assert mixed["image"].shape == batch["image"].shape
        assert mixed["image"].min() >= 0
        assert mixed["image"].max() <= 255
        torch.testing.assert_close(mixed["target"].sum(1), torch.ones(6))
        assert (mixed["target"] >= 0).all()
    assert torch.equal(seen[0]["image"], seen[1]["image"])
    assert torch.equal(seen[0]["target"], seen[1]["target"])
    for other in seen[2:]:
        assert not torch.equal(seen[0]["target"], other["target"])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    batch = _batch(2)
    augmentation = MixUp(name="mixup", alpha=alpha, **CROP)
    shares = [mix(batch, 2, augmentation, 3, step)["target"][0, 0].item() for step in range(400)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("augmentation", MIXING, ids=lambda a: a.name)
def test_mixing_leaves_the_batch_and_the_generator_alone(augmentation: Any) -> None:
    batch, state = _batch(), torch.get_rng_state()
    before = batch["image"].clone()
    mix(batch, 4, augmentation, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch["image"], before)
    assert "target" not in batch


def test_a_single_image_is_mixed_with_itself() -> None:
    for augmentation in MIXING:
        mixed = mix(_batch(1), 4, augmentation, 0, 0)
        torch.testing.assert_close(mixed["image"].float(), _batch(1)["image"].float())
        torch.testing.assert_close(mixed["target"], torch.eye(4)[:1])


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    return make_folder({"train/a": 14, "train/b": 12, "val/a": 5, "val/b": 4})


def _module(cfg: ImageFolder, augmentation: Any, workers: int = 0) -> TransferDataModule:
    return TransferDataModule(cfg, augmentation, GEOMETRY, seed=0, batch_size=8, eval_batch_size=8, num_workers=workers)


def _equal(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)  # type: ignore[literal-required]
        for one, two in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: a.name)
def test_workers_and_cuts_change_nothing(augmentation: Any, photos: Path, folder_cfg: FolderCfg) -> None:
    whole = list(_module(folder_cfg(photos), augmentation).train_batches(0, 7))
    assert _equal(list(_module(folder_cfg(photos), augmentation, workers=2).train_batches(0, 7)), whole)
    pieces: list[Batch] = []
    for first, end in pairwise((0, 2, 3, 7)):
        pieces += _module(folder_cfg(photos), augmentation).train_batches(first, end)
    assert _equal(pieces, whole)
    assert all(("target" in batch) == (augmentation in MIXING) for batch in whole)
    epochs = [torch.cat([batch["image"].float() for batch in whole[start : start + 3]]) for start in (0, 3)]
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("augmentation", MIXING, ids=lambda a: a.name)
def test_evaluation_is_never_mixed(augmentation: Any, photos: Path, folder_cfg: FolderCfg) -> None:
    plain = _module(folder_cfg(photos), ALL[0])
    for split in ("val", "test"):
        assert _equal(
            list(_module(folder_cfg(photos), augmentation).eval_loader(split)), list(plain.eval_loader(split))
        )


@pytest.mark.parametrize("augmentation", MIXING, ids=lambda a: a.name)
def test_what_is_mixed_are_the_crops(augmentation: Any, photos: Path, folder_cfg: FolderCfg) -> None:
    crops = list(_module(folder_cfg(photos), ALL[0]).train_batches(3, 5))
    way = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[augmentation.name](alpha=augmentation.alpha, num_classes=2)
    for step, batch in enumerate(_module(folder_cfg(photos), augmentation).train_batches(3, 5), start=3):
        crop = crops[step - 3]
        assert torch.equal(batch["index"], crop["index"])
        share = (batch["target"] * torch.eye(2)[crop["label"]]).sum(1)
        mixed = crop["label"] != crop["label"].roll(1)
        assert share[mixed].unique().numel() <= 1  # one proportion a batch
        assert torch.equal(share[~mixed], torch.ones(int((~mixed).sum())))
        assert way.num_classes == batch["target"].shape[1]
