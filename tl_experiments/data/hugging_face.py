"""Datasets of images on the Hugging Face hub, or in a folder of files that the library ``datasets`` reads."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from tl_experiments.data.decode import load_image, to_rgb
from tl_experiments.data.digests import file_digests
from tl_experiments.data.items import SPLITS, Item, Picture, Source, Split
from tl_experiments.data.labels import SPLIT_WORDS, absent, check_classes, class_names, listed
from tl_experiments.errors import DataError, first_line
from tl_experiments.network import REQUEST_S, answer

_KEY = "dataset.repo"


@dataclass(frozen=True)
class Reading:
    """What of a dataset is read, see ``config.datasets.HuggingFace``."""

    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


def open_hugging_face(
    repo: str, reading: Reading, max_pixels: int = 100_000_000, digests: Path | None = None
) -> Source:
    """Open a dataset of the hub, or a folder of parquet files, of images, or of ``save_to_disk``.

    No code of a dataset is ever run. Of the hub, the commit stands in the notes and in the fingerprint; what the cache
    holds serves where the hub does not answer or ``HF_HUB_OFFLINE`` is set. Of a folder, the fingerprint covers the
    files.

    Args:
        repo: ``owner/name``, or the folder; ``~`` and environment variables are expanded.
        reading: What of it.
        max_pixels: Larger images are refused.
        digests: Folder in which digests of a folder's files are remembered; None reads them for the fingerprint.

    Raises:
        DataError: The library is missing; the dataset cannot be reached or read; columns, splits or labels are not
            there or not those of one class an image.
    """
    library = _import_datasets()
    folder = Path(os.path.expandvars(repo)).expanduser()
    if folder.is_dir():
        data, about = _from_folder(library, folder, reading), []
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_data(folder, path))
        contents: Any = partial(file_digests, folder, files, digests)
    else:
        data, commit = _from_hub(library, repo, reading)
        about = [f"{repo} of the Hugging Face hub at commit {commit}."]
        contents = partial(list, [f"{repo}@{commit}"])
    chosen, left = _splits(repo, data, reading.splits)
    columns = _columns(library, repo, data, reading)
    words = {split: _labels(library, repo, name, data[name], columns[1]) for split, name in chosen.items()}
    feature = next(iter(data.values())).features[columns[1]]
    names = tuple(feature.names) if isinstance(feature, library.ClassLabel) else class_names(words["train"])
    check_classes(repo, names)
    label = {word: number for number, word in enumerate(names)}
    items = []
    for split, texts in words.items():
        for number, word in enumerate(texts):
            if word not in label:
                what = f"{chosen[split]} row {number} is of {word!r}, expected a class of train: {listed(names)}"
                raise DataError(repo, what, "leave that split out by dataset.splits, or correct the label")
            items.append(Item(f"{split}/{number:05d}", label[word], split))
    encoded = [data[name].cast_column(columns[0], library.Image(decode=False)) for name in chosen.values()]
    notes = (*about, *left, *absent(names, {label[word] for word in words["train"]}))
    return Source(names, tuple(items), partial(_load, repo, encoded, columns[0], max_pixels), contents, notes)


def _import_datasets() -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        what = f"the library datasets is missing ({error.name})"
        raise DataError("dataset=hugging_face", what, "pip install 'tl-experiments[huggingface]'") from error
    return datasets


def _from_folder(library: ModuleType, folder: Path, reading: Reading) -> Mapping[str, Any]:
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            data = library.load_from_disk(str(folder.resolve()))
        else:
            data = library.load_dataset(str(folder.resolve()), reading.config_name)
    except Exception as error:  # of pyarrow, fsspec and the library
        what = f"{folder} cannot be read as a dataset ({first_line(error)})"
        raise DataError(_KEY, what, "expected parquet files or images, in files or folders named by split") from error
    return data if isinstance(data, dict) else {"train": data}


def _is_data(folder: Path, path: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _from_hub(library: ModuleType, repo: str, reading: Reading) -> tuple[Mapping[str, Any], str]:
    """The dataset's splits and its commit."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise DataError(_KEY, f"{repo} is no folder and no name of the hub", "give owner/name, or correct the path")
    revision, reason = reading.revision, "HF_HUB_OFFLINE is set"
    if not library.config.HF_HUB_OFFLINE:
        try:
            # One question without retries first, which the library itself would ask for most of a minute.
            revision = answer(lambda: _commit(repo, revision))
        except _refusals() as error:
            raise DataError(
                _KEY, f"the hub has no {repo} to give ({first_line(error)})", "hf auth login, or correct the name"
            ) from error
        except Exception as error:
            reason = first_line(error)
            library.config.HF_HUB_OFFLINE = True  # this process takes what the cache holds
    try:
        builder = library.load_dataset_builder(repo, reading.config_name, revision=revision)
        builder.download_and_prepare()
        data = builder.as_dataset()
    except Exception as error:
        if library.config.HF_HUB_OFFLINE:
            what = f"{repo} is not on this disk and cannot be fetched ({reason})"
            fix = f"fetch it with network (the same command) into {library.config.HF_DATASETS_CACHE}, or give a folder"
            raise DataError(_KEY, what, fix) from error
        raise DataError(
            _KEY, f"{repo} cannot be read ({first_line(error)})", "correct config_name or revision"
        ) from error
    if re.fullmatch(r"[0-9a-f]{40}", revision or "") and builder.hash != revision:
        what = f"{repo} is on this disk at commit {builder.hash}, not at {revision}, which cannot be fetched ({reason})"
        raise DataError("dataset.revision", what, "fetch it with network, or give the revision that is here")
    return data, builder.hash


def _commit(repo: str, revision: str | None) -> str:
    import huggingface_hub

    return str(huggingface_hub.HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_S).sha)


def _refusals() -> tuple[type[Exception], ...]:
    """What the hub says of a dataset that is not there, or not for everybody."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    return RepositoryNotFoundError, RevisionNotFoundError


def _splits(repo: str, data: Mapping[str, Any], given: Mapping[str, str]) -> tuple[dict[Split, str], list[str]]:
    """Our split -> the dataset's, and a note on those that are not used."""
    named: dict[str, str] = dict(given) or {SPLIT_WORDS[name]: name for name in data if name in SPLIT_WORDS}
    chosen: dict[Split, str] = {split: named[split] for split in SPLITS if split in named}
    if strangers := [name for name in chosen.values() if name not in data]:
        what = f"no split {listed(strangers)}, it has {listed(data)}"
        raise DataError("dataset.splits", what, "correct the name")
    if "train" not in chosen:
        what = f"{repo} has {listed(data)}, expected train"
        raise DataError("dataset.splits", what, "say which is train: 'dataset.splits={train: ...}'")
    left = [name for name in data if name not in chosen.values()]
    return chosen, [f"Splits that are not used: {listed(left)}."] if left else []


def _columns(library: ModuleType, repo: str, data: Mapping[str, Any], reading: Reading) -> tuple[str, str]:
    """Names of the columns of images and of labels."""
    features = next(iter(data.values())).features
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    labels = labels or [name for name in ("label", "labels") if name in features]
    return (
        _column(repo, "image_column", "images", reading.image_column, images, features),
        _column(repo, "label_column", "labels", reading.label_column, labels, features),
    )


def _column(repo: str, option: str, what: str, given: str | None, found: Sequence[str], features: Any) -> str:
    candidates = list(found) if given is None else [name for name in features if name == given]
    if given is not None and option == "image_column" and given not in found:
        candidates = []
    if len(candidates) != 1:
        got = f"{given!r} is no column of {what}" if given else f"{len(candidates)} columns of {what}, expected one"
        raise DataError(repo, f"{got}; it has {listed(features)}", f"give dataset.{option}")
    return candidates[0]


def _labels(library: ModuleType, repo: str, name: str, part: Any, column: str) -> list[str]:
    """The class name of each row of a split."""
    feature, values = part.features[column], list(part[column])
    if isinstance(feature, library.ClassLabel):
        bad = next((number for number, value in enumerate(values) if value is None or value < 0), None)
        words = [] if bad is not None else [feature.names[value] for value in values]
    elif getattr(feature, "dtype", "") in ("string", "large_string", "bool") or "int" in getattr(feature, "dtype", ""):
        bad = next((number for number, value in enumerate(values) if value is None or value == ""), None)
        words = [str(value) for value in values]
    else:
        what = f"column {column} holds {feature}, expected one class an image"
        raise DataError(repo, what, "give dataset.label_column: class labels, text or integers")
    if bad is not None:
        what = f"{name} row {bad} has label {values[bad]!r}, expected a class"
        raise DataError(repo, what, "leave that split out by dataset.splits, or remove the row")
    return words


def _load(repo: str, parts: Sequence[Any], column: str, max_pixels: int, index: int) -> Picture:
    ends = list(accumulate(len(part) for part in parts))
    number = next(number for number, end in enumerate(ends) if index < end)
    row = index - ends[number] + len(parts[number])
    stored = parts[number][row][column]
    if stored is None or stored["bytes"] is None:
        if stored and stored["path"]:
            return load_image(Path(stored["path"]), 3)
        raise DataError(f"{repo} item {index}", "no image", "leave the row out")
    try:
        with Image.open(io.BytesIO(stored["bytes"])) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width} x {image.height} pixels, expected at most {max_pixels:,}")
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything on damaged images
        raise DataError(
            f"{repo} item {index}", f"cannot be decoded ({first_line(error)})", "leave the row out"
        ) from error
