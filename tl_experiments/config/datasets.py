"""Choices of the group ``dataset``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from tl_experiments.config.ranges import require
from tl_experiments.errors import ConfigError


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")


@dataclass(frozen=True, kw_only=True)
class _DatasetOptions:
    """What every dataset has.

    Args:
        val_fraction: Share of the training images carved out as val where no val split is given, in (0, 1).
        test_fraction: Share carved out as test where the dataset comes without any split, in (0, 1).
        split_seed: Seed of those splits; the same for every run of a sweep, so that runs are comparable.
        label_fraction: Share of the training labels used, in (0, 1]; stratified; smaller ones lie within larger ones.
        shots: Labels a class, for train and for val each; null uses all.
        subset_seed: Seed of ``label_fraction`` and ``shots``; null follows the run's seed.
        folds: Cross-validation: divide the images, stratified and by ``split_seed``, into so many parts, 2 or more; the
            part ``fold`` is test, or val where a test split is given. Null uses the splits.
        fold: In [0, folds).
        tests: Further test sets, name -> an image folder or a csv file with the same classes; reported beside test,
            and nothing is chosen on them.
        sampling: ``uniform`` sees each training image once an epoch, ``balanced`` draws as many with replacement, each
            class equally often.
        on_bad: What becomes of images that cannot be decoded: ``error`` names them before training, ``skip`` leaves
            them out and records the list.
        max_pixels: Larger images are refused by their header, before memory is taken.
        preload_max_bytes: Decode a split once and hold it in memory if it takes no more than this; where images are
            augmented, hold as many decoded originals. The processes of a job on one machine share it.
    """

    val_fraction: float
    test_fraction: float
    split_seed: int
    label_fraction: float | None
    shots: int | None
    subset_seed: int | None
    folds: int | None
    fold: int
    tests: Mapping[str, str]
    sampling: Literal["uniform", "balanced"]
    on_bad: Literal["error", "skip"]
    max_pixels: int
    preload_max_bytes: int

    def __post_init__(self) -> None:
        require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "(0, 1)")
        require(0 < self.test_fraction < 1, "test_fraction", self.test_fraction, "(0, 1)")
        require(
            self.val_fraction + self.test_fraction < 1,
            "val_fraction",
            f"{self.val_fraction} with test_fraction {self.test_fraction}",
            "a sum below 1",
        )
        require(
            self.label_fraction is None or 0 < self.label_fraction <= 1, "label_fraction", self.label_fraction, "(0, 1]"
        )
        require(self.shots is None or self.shots > 0, "shots", self.shots, "1 or more")
        require(
            self.label_fraction is None or self.shots is None,
            "label_fraction",
            f"{self.label_fraction} together with shots {self.shots}",
            "one of the two",
        )
        folds = self.folds
        require(folds is None or folds >= 2, "folds", folds, "2 or more, or null")
        require(0 <= self.fold < (folds or 1), "fold", self.fold, f"0 to {folds - 1}" if folds else "0 without folds")
        require(
            len(self.test_sets) == len(self.tests) and "" not in self.test_sets,
            "tests",
            ", ".join(map(repr, self.tests)),
            "names with letters or digits, by which they can be told apart",
        )
        require(self.max_pixels > 0, "max_pixels", self.max_pixels, "1 or more")
        require(self.preload_max_bytes >= 0, "preload_max_bytes", self.preload_max_bytes, "0 or more")

    @property
    def test_sets(self) -> dict[str, str]:
        """``tests``, sorted, under names of letters, digits and . _ - alone, which fit into files and keys."""
        return {_slug(name): path for name, path in sorted(self.tests.items())}

    @property
    def location(self) -> str | None:
        """Where the data is, as it was given; None where it comes with a package, so that it cannot change."""
        return None

    def labels_seed(self, seed: int) -> int | None:
        """The seed on which the labels that a run of ``seed`` uses depend; None where it uses all."""
        if self.shots is None and self.label_fraction is None:
            return None
        return seed if self.subset_seed is None else self.subset_seed


# Options of every dataset: how it is divided and read; those of a single one say which images it means.
COMMON_OPTIONS = tuple(field.name for field in fields(_DatasetOptions))


@dataclass(frozen=True, kw_only=True)
class Digits(_DatasetOptions):
    """1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn."""

    name: Literal["digits"]
    channels: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class Letters(_DatasetOptions):
    """Capital letters rendered from the fonts that come with matplotlib: a source task that needs no download.

    Args:
        images_per_class: Images of each of the 26 letters.
        size: Side of the rendered image in pixels, 8 or more.
        render_seed: Seed of fonts, positions, angles and noise.
    """

    name: Literal["letters"]
    images_per_class: int
    size: int
    render_seed: int
    channels: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.images_per_class > 0, "images_per_class", self.images_per_class, "1 or more")
        require(self.size >= 8, "size", self.size, "8 or more")


@dataclass(frozen=True, kw_only=True)
class ImageFolder(_DatasetOptions):
    """Images in one folder a class: ``root/train|val|test/class/*`` or ``root/class/*``.

    Args:
        root: The folder.
        allow_empty: Go on where a class folder holds no image.
        channels: 3 (colour), 1 (grey) or 4 (with transparency) reads image files; any number 1 or more reads ``.npy``
            files, uint8 ``(height, width, channels)``.
    """

    name: Literal["image_folder"]
    root: str | None
    allow_empty: bool
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.channels > 0, "channels", self.channels, "1 or more")
        if self.root is None:
            raise ConfigError("root", "no folder given", "dataset.root=$HOME/photos")

    @property
    def location(self) -> str | None:
        return self.root


@dataclass(frozen=True, kw_only=True)
class CsvFile(_DatasetOptions):
    """Images named by a table, with a row for each: csv, or tsv.

    Args:
        path: The table.
        root: Folder that the paths in it are relative to; null is the table's.
        path_column: Column of the paths.
        label_column: Column of the class names.
        split_column: Column of the words train, val and test; only a table without a column ``split`` is not split.
        classes: Class names in label order; null takes those of train, in numerical order where all are integers, else
            sorted as text.
        channels: As of ``ImageFolder``.
    """

    name: Literal["csv"]
    path: str | None
    root: str | None
    path_column: str
    label_column: str
    split_column: str
    classes: tuple[str, ...] | None
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.channels > 0, "channels", self.channels, "1 or more")
        if self.path is None:
            raise ConfigError("path", "no table given", "dataset.path=$HOME/labels.csv")

    @property
    def location(self) -> str | None:
        return self.path


@dataclass(frozen=True, kw_only=True)
class Npz(_DatasetOptions):
    """Images and labels as arrays of one ``.npz`` file, named as MedMNIST or Keras name them, or ``x`` and ``y``.

    Args:
        path: The file.
        classes: Class names in label order; null takes the labels of train.
        channels: 3 makes grey images colour, 1 colour images grey; of images with other channels, how many they have.
    """

    name: Literal["npz"]
    path: str | None
    classes: tuple[str, ...] | None
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.channels > 0, "channels", self.channels, "1 or more")
        if self.path is None:
            raise ConfigError("path", "no file given", "dataset.path=$HOME/pathmnist.npz")

    @property
    def location(self) -> str | None:
        return self.path


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet(_DatasetOptions):
    """A published dataset in the files that torchvision reads, under torchvision's name of it.

    Args:
        root: Folder in which torchvision looks for the set's own folder.
        download: Fetch what is not there.
    """

    name: Literal[
        "cifar10",
        "cifar100",
        "flowers102",
        "oxford_pets",
        "food101",
        "eurosat",
        "dtd",
        "stanford_cars",
        "fgvc_aircraft",
        "stl10",
        "svhn",
        "caltech101",
        "pcam",
    ]
    root: str
    download: bool
    channels: ClassVar[int] = 3

    @property
    def location(self) -> str | None:
        return self.root


@dataclass(frozen=True, kw_only=True)
class HuggingFace(_DatasetOptions):
    """A dataset of images on the Hugging Face hub, or a folder that the library ``datasets`` reads.

    Args:
        repo: ``owner/name`` on the hub, or the folder.
        config_name: Which of its configurations; null where there is one.
        revision: Branch, tag or commit; null is the newest commit.
        image_column: Null is the one column of images.
        label_column: Null is the one column of class labels, or else ``label``.
        splits: Its split for each of train, val and test; those that are not named are not used. Empty takes the
            splits whose names are train, val (valid, validation, dev) and test.
    """

    name: Literal["hugging_face"]
    repo: str | None
    config_name: str | None
    revision: str | None
    image_column: str | None
    label_column: str | None
    splits: Mapping[str, str]
    channels: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repo is None:
            raise ConfigError("repo", "no dataset given", "dataset.repo=owner/name, or a folder")
        for split in self.splits:
            require(split in ("train", "val", "test"), "splits", split, "train, val and test as keys")

    @property
    def location(self) -> str | None:
        return self.repo


Dataset = Digits | Letters | ImageFolder | CsvFile | Npz | TorchvisionSet | HuggingFace

# Names of those whose images stand in an array: there is nothing to decode, hence nothing to share or to price.
IN_MEMORY = frozenset({"digits", "letters", "npz", "cifar10", "cifar100", "stl10", "svhn"})
