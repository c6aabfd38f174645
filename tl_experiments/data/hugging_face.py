"""Datasets of images on the Hugging Face hub, or in a folder of files that the library ``datasets`` reads."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from tl_experiments.data.checking import check_bytes
from tl_experiments.data.decode import MAX_PIXELS, load_bytes
from tl_experiments.data.digests import file_digests
from tl_experiments.data.items import SPLITS, Checked, Item, Picture, Source, Split
from tl_experiments.data.labels import SPLIT_WORDS, absent, check_classes, class_names, listed
from tl_experiments.errors import DataError, first_line
from tl_experiments.network import REQUEST_S, answer
from tl_experiments.user_paths import expanded

_KEY = "dataset.repo"


@dataclass(frozen=True)
class Reading:
    """What of a dataset is read, see ``config.datasets.HuggingFace``."""

    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


def open_hugging_face(repo: str, reading: Reading, max_pixels: int = MAX_PIXELS, digests: Path | None = None) -> Source:
    """Open a dataset of the hub, or a folder of parquet files, of images, or of ``save_to_disk``.

    No code of a dataset is ever run. Of the hub, the commit stands in the notes and in the fingerprint; what the cache
    holds serves without a question, so that a sweep has one origin. Of a folder, the fingerprint covers the files.

    Args:
        repo: ``owner/name``, or the folder; ``~`` and environment variables are expanded.
        reading: What of it.
        max_pixels: Of the largest image that is decoded.
        digests: Folder in which is remembered what is known of files and images; None reads them anew.

    Raises:
        DataError: The library is missing; the dataset cannot be reached or read; columns, splits or labels are not
            there or not those of one class an image.
    """
    library = _import_datasets()
    folder = expanded(repo)
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
    encoded = {split: data[name].cast_column(columns[0], library.Image(decode=False)) for split, name in chosen.items()}
    rows = _Rows(folder, [item.id for item in items], encoded, columns[0], max_pixels, digests)
    notes = (*about, *left, *absent(names, {label[word] for word in words["train"]}))
    return Source(names, tuple(items), rows.load, contents, notes, check=rows.check)


class _Rows:
    """Images that stand encoded in the rows of splits; an id is ``split/row``."""

    def __init__(
        self,
        where: Path,
        ids: Sequence[str],
        parts: Mapping[Split, Any],
        column: str,
        max_pixels: int,
        memory: Path | None,
    ) -> None:
        self._where, self._ids, self._parts, self._column = where, ids, parts, column
        self._names, self._max_pixels, self._memory = [f"{where} {each}" for each in ids], max_pixels, memory

    def load(self, index: int) -> Picture:
        return load_bytes(self._read(index), self._names[index], 3, self._max_pixels)

    def check(self) -> tuple[Checked, ...]:
        return self._checked

    @cached_property
    def _checked(self) -> tuple[Checked, ...]:
        return check_bytes(self._names, self._read, 3, self._max_pixels, self._memory, self._where)

    def _read(self, index: int) -> bytes:
        """An image as it is stored; nothing where there is none."""
        split, row = self._ids[index].split("/")
        stored = self._parts[split][int(row)][self._column]
        if stored is None:
            return b""
        if stored["bytes"] is not None:
            return stored["bytes"]
        path = Path(stored["path"])
        return path.read_bytes() if path.is_file() else b""


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
    """The dataset's splits and its commit; what the cache holds is taken without asking for a newer one."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise DataError(_KEY, f"{repo} is no folder and no name of the hub", "give owner/name, or correct the path")
    builder, reason = _cached(library, repo, reading.config_name), "HF_HUB_OFFLINE is set"
    if builder is not None and reading.revision in (None, builder.hash):
        return builder.as_dataset(), builder.hash
    if not library.config.HF_HUB_OFFLINE:
        try:
            # One question without retries first, which the library itself would ask for most of a minute.
            commit = answer(lambda: _commit(repo, reading.revision))
        except _refusals() as error:
            what = f"the hub has no {repo} to give ({first_line(error)})"
            raise DataError(_KEY, what, "correct name and revision, or hf auth login") from error
        except Exception as error:
            reason = first_line(error)
        else:
            return _fetched(library, repo, reading.config_name, commit), commit
    here = "is not on this disk" if builder is None else f"is on this disk at commit {builder.hash}, no other"
    where = f"fetch it with network (the same command) into {library.config.HF_DATASETS_CACHE}"
    fix = f"{where}, or give a folder" if builder is None else f"{where}, or dataset.revision=null"
    raise DataError(_KEY, f"{repo} {here}, and cannot be fetched ({reason})", fix)


def _cached(library: ModuleType, repo: str, config_name: str | None) -> Any | None:
    """A builder of what was fetched before, or None."""
    before = library.config.HF_HUB_OFFLINE
    logging.getLogger("datasets").setLevel(logging.ERROR)  # it would warn that it takes what is wanted
    library.config.HF_HUB_OFFLINE = True
    try:
        return library.load_dataset_builder(repo, config_name)
    except Exception:  # whatever it is, fetching will say what is wrong
        return None
    finally:
        library.config.HF_HUB_OFFLINE = before


def _fetched(library: ModuleType, repo: str, config_name: str | None, commit: str) -> Mapping[str, Any]:
    try:
        builder = library.load_dataset_builder(repo, config_name, revision=commit)
        builder.download_and_prepare()
        return builder.as_dataset()
    except Exception as error:  # of pyarrow, httpx, fsspec and the library
        raise DataError(_KEY, f"{repo} cannot be read ({first_line(error)})", "correct dataset.config_name") from error


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
