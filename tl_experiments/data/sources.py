"""From a dataset's config to its source: the one place that knows every kind of dataset."""

from __future__ import annotations

from tl_experiments.config.schema import Dataset, Digits, ImageFolder, Letters
from tl_experiments.data.digits import open_digits
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.items import Source
from tl_experiments.data.letters import open_letters


def open_source(cfg: Dataset) -> Source:
    """Open a dataset: list its items and read all of them once for the fingerprint, without decoding.

    Raises:
        DataError: The dataset cannot be used as it stands.
    """
    match cfg:
        case Digits():
            return open_digits()
        case Letters():
            return open_letters(cfg.images_per_class, cfg.size, cfg.render_seed)
        case ImageFolder():
            assert cfg.root is not None, "the schema refuses a missing root"
            return open_image_folder(cfg.root, cfg.allow_empty)
