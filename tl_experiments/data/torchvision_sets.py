"""Published datasets in the files, and through the classes, of torchvision."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_experiments.data.checking import Files
from tl_experiments.data.decode import MAX_PIXELS
from tl_experiments.data.digests import file_digests
from tl_experiments.data.items import Item, Picture, Source, Split, pixels
from tl_experiments.errors import DataError, first_line
from tl_experiments.network import REQUEST_S
from tl_experiments.user_paths import expanded

_TRAIN_TEST: Mapping[Split | None, Mapping[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE: Mapping[Split | None, Mapping[str, Any]] = {split: {"split": split} for split in ("train", "val", "test")}


@dataclass(frozen=True)
class Published:
    """One of torchvision's datasets.

    Args:
        cls: Its class in ``torchvision.datasets``.
        folder: What ids and digests are relative to, below the root.
        files: What must be there, relative to that; folders too.
        splits: Our split -> arguments of the class; None is a set that is not split.
        read: From an object of the class to images, labels and class names.
        fetchable: Whether torchvision still knows where to download it.
    """

    cls: str
    folder: str
    files: tuple[str, ...]
    splits: Mapping[Split | None, Mapping[str, Any]]
    read: Callable[[Any], _Part]
    fetchable: bool = True


@dataclass(frozen=True)
class _Part:
    """One split. ``images`` are paths, uint8 ``(n, height, width, 3)``, or an HDF5 file that holds such an array."""

    images: Sequence[str] | NDArray[np.uint8] | Path
    labels: Sequence[int]
    classes: Sequence[str]


def open_torchvision(
    name: str, root: str, download: bool, max_pixels: int = MAX_PIXELS, digests: Path | None = None
) -> Source:
    """Read a set of ``SETS``; splits that it comes in are kept.

    torchvision compares CIFAR, SVHN, STL10 and the lists of Flowers102 with the checksums of what was published before
    it reads them; CIFAR's files are pickles, and others would run code.

    Args:
        name: A key of ``SETS``.
        root: The folder that torchvision calls so; ``~`` and environment variables are expanded.
        download: Let torchvision fetch what is not there.
        max_pixels: Of the largest image that is decoded.
        digests: Folder in which is remembered what is known of the files; None reads every file for the fingerprint.

    Raises:
        DataError: Files are missing, are not those that were published, or cannot be fetched.
    """
    published, where = SETS[name], expanded(root)
    folder = (where / published.folder).absolute()
    missing = [file for file in published.files if not (folder / file).exists()]
    fetch = download and published.fetchable
    if missing and not fetch:
        raise _missing(name, published, folder, missing)
    with _explained(name, folder, fetch):
        parts = {split: _read(published, where.absolute(), fetch, split) for split in published.splits}
    classes = next(iter(parts.values())).classes
    label = {word: number for number, word in enumerate(classes)}
    items = []
    for split, part in parts.items():
        for number, position in enumerate(part.labels):
            word = part.classes[position]
            if word not in label:
                raise DataError(name, f"{split} has images of {word}, which train has not", "fetch the set again")
            items.append(Item(_id(part, folder, split, number), label[word], split))
    return _source(tuple(classes), tuple(items), list(parts.values()), folder, max_pixels, digests)


def _source(
    classes: tuple[str, ...],
    items: tuple[Item, ...],
    parts: Sequence[_Part],
    folder: Path,
    max_pixels: int,
    digests: Path | None,
) -> Source:
    images = [part.images for part in parts]
    if isinstance(images[0], np.ndarray):
        array: NDArray[np.uint8] = np.concatenate(images)  # type: ignore[arg-type]
        return Source(classes, items, partial(_from_array, array), partial(pixels, array), decoded_in_memory=True)
    if isinstance(images[0], Path):
        names = [path.name for path in images]  # type: ignore[union-attr]
        starts = np.cumsum([0, *(len(part.labels) for part in parts)])
        load: Callable[[int], Picture] = partial(_from_hdf5, folder, names, starts)
        return Source(classes, items, load, partial(file_digests, folder, names, digests))
    files = Files(folder, [item.id for item in items], 3, max_pixels, digests)
    return Source(classes, items, files.load, files.digests, check=files.check)


def _read(published: Published, root: Path, download: bool, split: Split | None) -> _Part:
    from torchvision import datasets

    cls = getattr(datasets, published.cls)
    if published.cls == "STL10":  # its unlabelled images, of 2.7 GB, are neither needed nor checked each time
        cls = type("STL10", (cls,), {"train_list": cls.train_list[:2]})
    return published.read(cls(str(root), download=download, **published.splits[split]))


def _id(part: _Part, folder: Path, split: Split | None, number: int) -> str:
    if isinstance(part.images, (np.ndarray, Path)):
        return f"{split}/{number:05d}"
    return Path(part.images[number]).relative_to(folder).as_posix()


def _missing(name: str, published: Published, folder: Path, missing: Sequence[str]) -> DataError:
    seen = f"{folder} has no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
    by_hand = "give the folder above with dataset.root, or put the files there"
    fix = f"dataset.download=true fetches them; or {by_hand}" if published.fetchable else f"{by_hand} by hand"
    return DataError(name, f"{seen}, which torchvision's {published.cls} reads", fix)


@contextmanager
def _explained(name: str, folder: Path, fetch: bool) -> Iterator[None]:
    """What torchvision raises, in one line; a server that does not answer is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(REQUEST_S if fetch else before)
    try:
        yield
    except (DataError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        raise DataError(name, f"needs {error.name}", "pip install 'tl-experiments[pcam]'") from error
    except Exception as error:  # of torchvision, pickle, scipy and urllib
        what = f"{folder} cannot be {'fetched' if fetch else 'read as it was published'} ({first_line(error)})"
        fix = (
            "fetch it where there is network and copy the folder" if fetch else "remove it, then dataset.download=true"
        )
        raise DataError(name, what, fix) from error
    finally:
        socket.setdefaulttimeout(before)


def _cifar(data: Any) -> _Part:
    return _Part(data.data, data.targets, data.classes)


def _svhn(data: Any) -> _Part:
    return _Part(data.data.transpose(0, 2, 3, 1), data.labels.tolist(), tuple("0123456789"))


def _stl10(data: Any) -> _Part:
    return _Part(data.data.transpose(0, 2, 3, 1), data.labels.tolist(), data.classes)


def _by_loader(data: Any) -> _Part:
    data.loader = os.fspath  # an item of the set is then a path and a label
    pairs = [data[index] for index in range(len(data))]
    return _Part([path for path, _ in pairs], [int(label) for _, label in pairs], data.classes)


def _pets(data: Any) -> _Part:
    return _Part([str(path) for path in data._images], data._labels, data.classes)


def _caltech(data: Any) -> _Part:
    folder = Path(data.root, "101_ObjectCategories")
    named = zip((data.categories[label] for label in data.y), data.index, strict=True)
    return _Part([str(folder / name / f"image_{number:04d}.jpg") for name, number in named], data.y, data.categories)


def _pcam(data: Any) -> _Part:
    images, targets = (data._base_folder / data._FILES[data._split][kind][0] for kind in ("images", "targets"))
    with data.h5py.File(targets) as stored:
        labels = stored["y"][:].reshape(-1).tolist()
    return _Part(images, labels, ("normal", "metastasis"))


def _from_array(images: NDArray[np.uint8], index: int) -> Picture:
    return Image.fromarray(images[index])


def _from_hdf5(folder: Path, names: Sequence[str], starts: NDArray[np.int64], index: int) -> Picture:
    import h5py

    part = int(np.searchsorted(starts, index, side="right")) - 1
    with h5py.File(folder / names[part]) as stored:
        return Image.fromarray(stored["x"][index - starts[part]]).convert("RGB")


SETS: Mapping[str, Published] = {
    "cifar10": Published(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
        {"train": {"train": True}, "test": {"train": False}},
        _cifar,
    ),
    "cifar100": Published(
        "CIFAR100",
        "cifar-100-python",
        ("train", "test", "meta"),
        {"train": {"train": True}, "test": {"train": False}},
        _cifar,
    ),
    "flowers102": Published(
        "Flowers102", "flowers-102", ("jpg", "imagelabels.mat", "setid.mat"), _ALL_THREE, _by_loader
    ),
    "oxford_pets": Published(
        "OxfordIIITPet",
        "oxford-iiit-pet",
        ("images", "annotations/trainval.txt", "annotations/test.txt"),
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        _pets,
    ),
    "food101": Published(
        "Food101", "food-101", ("images", "meta/train.json", "meta/test.json"), _TRAIN_TEST, _by_loader
    ),
    "eurosat": Published("EuroSAT", "eurosat/2750", ("",), {None: {}}, _by_loader),
    "dtd": Published(
        "DTD",
        "dtd/dtd",
        ("images", *(f"labels/{split}1.txt" for split in ("train", "val", "test"))),
        {split: {"split": split, "partition": 1} for split in ("train", "val", "test")},
        _by_loader,
    ),
    "stanford_cars": Published(
        "StanfordCars",
        "stanford_cars",
        (
            *("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
            "cars_test_annos_withlabels.mat",
        ),
        _TRAIN_TEST,
        _by_loader,
        fetchable=False,
    ),
    "fgvc_aircraft": Published(
        "FGVCAircraft",
        "fgvc-aircraft-2013b/data",
        ("images", "variants.txt", *(f"images_variant_{split}.txt" for split in ("train", "val", "test"))),
        _ALL_THREE,
        _by_loader,
    ),
    "stl10": Published(
        "STL10",
        "stl10_binary",
        ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"),
        _TRAIN_TEST,
        _stl10,
    ),
    "svhn": Published("SVHN", "", ("train_32x32.mat", "test_32x32.mat"), _TRAIN_TEST, _svhn),
    "caltech101": Published("Caltech101", "caltech101/101_ObjectCategories", ("",), {None: {}}, _caltech),
    "pcam": Published(
        "PCAM",
        "pcam",
        tuple(
            f"camelyonpatch_level_2_split_{split}_{part}.h5" for split in ("train", "valid", "test") for part in "xy"
        ),
        _ALL_THREE,
        _pcam,
    ),
}
