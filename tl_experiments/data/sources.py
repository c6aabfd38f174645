"""From a dataset's config to its source: the one place that knows every kind of dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tl_experiments.config.datasets import (
    CsvFile,
    Dataset,
    Digits,
    HuggingFace,
    ImageFolder,
    Letters,
    Npz,
    TorchvisionSet,
)
from tl_experiments.data.broken import without_bad
from tl_experiments.data.csv_file import Columns, open_csv
from tl_experiments.data.digits import open_digits
from tl_experiments.data.further_tests import open_test_set, with_tests
from tl_experiments.data.hugging_face import Reading, open_hugging_face
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.items import Source, fingerprint
from tl_experiments.data.letters import open_letters
from tl_experiments.data.npz import open_npz
from tl_experiments.data.splits import Splits, assign_splits, subset
from tl_experiments.data.torchvision_sets import open_torchvision


def open_source(cfg: Dataset, digests: Path | None = None) -> Source:
    """List a dataset's items, those of its further test sets last; nothing is decoded, unless those that cannot be are
    to be left out.

    Args:
        cfg: The dataset.
        digests: Folder in which is remembered what is known of files, see ``recall``; None remembers nothing.

    Raises:
        DataError: The dataset cannot be used as it stands.
    """
    source = _listed(cfg, digests)
    tests = {
        name: open_test_set(name, path, cfg.channels, cfg.max_pixels, digests, source.classes)
        for name, path in cfg.test_sets.items()
    }
    source = with_tests(source, tests)
    return without_bad(source) if cfg.on_bad == "skip" else source


def _listed(cfg: Dataset, digests: Path | None) -> Source:
    match cfg:
        case Digits():
            return open_digits()
        case Letters():
            return open_letters(cfg.images_per_class, cfg.size, cfg.render_seed)
        case ImageFolder():
            assert cfg.root is not None, "the schema refuses a missing root"
            return open_image_folder(cfg.root, cfg.allow_empty, cfg.channels, cfg.max_pixels, digests)
        case CsvFile():
            assert cfg.path is not None, "the schema refuses a missing path"
            columns = Columns(cfg.path_column, cfg.label_column, cfg.split_column)
            return open_csv(cfg.path, cfg.root, columns, cfg.classes, cfg.channels, cfg.max_pixels, digests)
        case Npz():
            assert cfg.path is not None, "the schema refuses a missing path"
            return open_npz(cfg.path, cfg.classes, cfg.channels, cfg.max_pixels, digests)
        case TorchvisionSet():
            return open_torchvision(cfg.name, cfg.root, cfg.download, cfg.max_pixels, digests)
        case HuggingFace():
            assert cfg.repo is not None, "the schema refuses a missing name"
            reading = Reading(cfg.config_name, cfg.revision, cfg.image_column, cfg.label_column, cfg.splits)
            return open_hugging_face(cfg.repo, reading, cfg.max_pixels, digests)


@dataclass(frozen=True)
class OpenDataset:
    """A source with its splits.

    Args:
        source: Its items.
        whole: All of them, divided into train, val and test.
        used: What ``label_fraction`` or ``shots`` leaves of that.
    """

    source: Source
    whole: Splits
    used: Splits

    @property
    def fingerprint(self) -> str:
        """sha256 over contents and splits, whatever is used of them: images are read unless their digests are known."""
        return fingerprint([self.source.fingerprint, self.whole.fingerprint(self.source.items)])


def open_dataset(cfg: Dataset, seed: int, *, digests: Path | None = None, source: Source | None = None) -> OpenDataset:
    """Open a dataset and divide it; needs no torch and decodes nothing, so it also serves as a check before a run.

    Args:
        cfg: The dataset.
        seed: The run's: of the label subset, where ``subset_seed`` is null.
        digests: As in ``open_source``.
        source: What ``open_source`` gave for this dataset, if it was opened already.

    Raises:
        DataError: The dataset cannot be used as it stands.
    """
    return divide(open_source(cfg, digests) if source is None else source, cfg, seed)


def divide(source: Source, cfg: Dataset, seed: int) -> OpenDataset:
    """``open_dataset`` for a source that is open already.

    Raises:
        DataError: It cannot be divided as ``cfg`` says.
    """
    whole = assign_splits(
        source.items,
        source.classes,
        val_fraction=cfg.val_fraction,
        test_fraction=cfg.test_fraction,
        seed=cfg.split_seed,
        folds=cfg.folds,
        fold=cfg.fold,
    )
    labels_seed = cfg.labels_seed(seed)
    used = subset(
        whole,
        source.items,
        source.classes,
        label_fraction=cfg.label_fraction,
        shots=cfg.shots,
        seed=seed if labels_seed is None else labels_seed,
    )
    return OpenDataset(source, whole, used)
