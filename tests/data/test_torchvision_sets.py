"""torchvision's datasets, read from small files in their published formats, against torchvision's own classes."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as published
from PIL import Image

from tl_experiments.config import compose
from tl_experiments.config.datasets import IN_MEMORY
from tl_experiments.data.sources import open_dataset, open_source
from tl_experiments.data.torchvision_sets import SETS, open_torchvision
from tl_experiments.errors import DataError

RNG = np.random.default_rng(0)
Make = Callable[[Path, pytest.MonkeyPatch], None]


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)


def pickled(path: Path, content: object) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return [path.name, md5(path)]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, labels: str, names: tuple[str, ...]) -> None:
    folder = root / cls.base_folder

    def batch(name: str) -> list[str]:
        classes = list(range(len(names))) * 2
        content = {"data": RNG.integers(0, 256, (len(classes), 3072), dtype=np.uint8), labels: classes}
        return pickled(folder / name, content)

    monkeypatch.setattr(cls, "train_list", [batch(name) for name, _ in cls.train_list])
    monkeypatch.setattr(cls, "test_list", [batch(name) for name, _ in cls.test_list])
    _, digest = pickled(folder / cls.meta["filename"], {cls.meta["key"]: list(names)})
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": digest})


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(root, monkeypatch, published.CIFAR10, "labels", ("airplane", "automobile", "bird"))


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(root, monkeypatch, published.CIFAR100, "fine_labels", ("apple", "aquarium_fish"))


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for number in range(1, 10):
        jpeg(folder / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 3, 2, 1, 102, 2, 3]], np.uint8)})
    ids = {"trnid": [[9, 2, 1, 7]], "valid": [[3, 4]], "tstid": [[5, 6, 8]]}
    scipy.io.savemat(folder / "setid.mat", {key: np.array(value, np.uint16) for key, value in ids.items()})
    files = {**published.Flowers102._file_dict}
    files |= {key: (files[key][0], md5(folder / files[key][0])) for key in ("label", "setid")}
    monkeypatch.setattr(published.Flowers102, "_file_dict", files)


def oxford_pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    rows = {"trainval": ["Abyssinian_1 1 1 1", "great_pyrenees_7 2 2 3"], "test": ["great_pyrenees_9 2 2 3"] * 1}
    for name, lines in {**rows, "test": [*rows["test"], "Abyssinian_4 1 1 1"]}.items():
        for line in lines:
            jpeg(folder / "images" / f"{line.split()[0]}.jpg")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def food101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {
        "train": {"ramen": ["ramen/3", "ramen/1"], "gyoza": ["gyoza/8"]},
        "test": {"gyoza": ["gyoza/2"], "ramen": []},
    }
    (root / "food-101" / "meta").mkdir(parents=True)
    for name, content in lists.items():
        (root / "food-101" / "meta" / f"{name}.json").write_text(json.dumps(content))
        for path in (path for paths in content.values() for path in paths):
            jpeg(root / "food-101" / "images" / f"{path}.jpg")


def eurosat(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SeaLake/SeaLake_2", "SeaLake/SeaLake_10", "Forest/Forest_1"):
        jpeg(root / "eurosat" / "2750" / f"{name}.jpg")


def dtd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    # val lacks a class, so that torchvision's own numbers of its labels are off by one
    lists = {
        "train": ["banded/1.jpg", "dotted/1.jpg", "zigzagged/1.jpg"],
        "val": ["zigzagged/2.jpg"],
        "test": ["dotted/3.jpg"],
    }
    for split, lines in lists.items():
        (folder / "labels" / f"{split}1.txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / "labels" / f"{split}2.txt").write_text("banded/9.jpg\n")
        for line in lines:
            jpeg(folder / "images" / line)


def stanford_cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], object)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, file in [("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")]:
        rows = [(f"{number:05d}.jpg", label) for number, label in enumerate([2, 1, 2], start=1)]
        table = np.array(rows, dtype=[("fname", object), ("class", object)])
        scipy.io.savemat(folder / file, {"annotations": table})
        for name, _ in rows:
            jpeg(folder / f"cars_{split}" / name)


def fgvc_aircraft(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA300B4\nBoeing 717\n")
    lists = {"train": ["1 707-320", "2 Boeing 717", "5 A300B4"], "val": ["3 Boeing 717"], "test": ["4 A300B4"]}
    for split, lines in lists.items():
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            jpeg(folder / "images" / f"{line.split()[0]}.jpg")


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    for split in ("train", "test"):
        RNG.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        np.array([1, 2, 2, 1], np.uint8).tofile(folder / f"{split}_y.bin")
    train = [[name, md5(folder / name)] for name in ("train_X.bin", "train_y.bin")]
    cls = published.STL10
    monkeypatch.setattr(cls, "train_list", [*train, ["unlabeled_X.bin", "5242ba1fed5e4be9e1e742405eb56ca4"]])
    monkeypatch.setattr(cls, "test_list", [[name, md5(folder / name)] for name in ("test_X.bin", "test_y.bin")])


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = dict(published.SVHN.split_list)
    root.mkdir()
    for split, labels in {"train": list(range(1, 11)), "test": [10, 3]}.items():
        url, name, _ = splits[split]
        x = RNG.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        scipy.io.savemat(root / name, {"X": x, "y": np.array([labels], np.uint8).T})
        splits[split] = [url, name, md5(root / name)]
    monkeypatch.setattr(published.SVHN, "split_list", splits)


def caltech101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for name in ("BACKGROUND_Google/image_0001", "accordion/image_0001", "accordion/image_0002", "yin_yang/image_0001"):
        jpeg(folder / f"{name}.jpg")


def pcam(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: PatchCamelyon comes as HDF5")
    (root / "pcam").mkdir(parents=True)
    for split, labels in {"train": [0, 1, 1], "valid": [1], "test": [0, 1]}.items():
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{split}_x.h5", "w") as stored:
            stored["x"] = RNG.integers(0, 256, (len(labels), 96, 96, 3), dtype=np.uint8)
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{split}_y.h5", "w") as stored:
            stored["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)


# Each set: its files, and how its documentation says to read each of our splits
_THREE = {split: {"split": split} for split in ("train", "val", "test")}
_TWO = {split: {"split": split} for split in ("train", "test")}
_TRAIN = {"train": {"train": True}, "test": {"train": False}}
REFERENCE: dict[str, tuple[Make, Any, dict[str | None, dict[str, Any]]]] = {
    "cifar10": (cifar10, published.CIFAR10, _TRAIN),
    "cifar100": (cifar100, published.CIFAR100, _TRAIN),
    "flowers102": (flowers102, published.Flowers102, _THREE),
    "oxford_pets": (oxford_pets, published.OxfordIIITPet, {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "food101": (food101, published.Food101, _TWO),
    "eurosat": (eurosat, published.EuroSAT, {None: {}}),
    "dtd": (dtd, published.DTD, {split: {"split": split, "partition": 1} for split in ("train", "val", "test")}),
    "stanford_cars": (stanford_cars, published.StanfordCars, _TWO),
    "fgvc_aircraft": (fgvc_aircraft, published.FGVCAircraft, _THREE),
    "stl10": (stl10, published.STL10, _TWO),
    "svhn": (svhn, published.SVHN, _TWO),
    "caltech101": (caltech101, published.Caltech101, {None: {}}),
    "pcam": (pcam, published.PCAM, _THREE),
}


def class_of(cls: Any, data: Any, label: int) -> str:
    if cls is published.SVHN:
        return str(label)
    if cls is published.PCAM:
        return ("normal", "metastasis")[label]
    return str(data.categories[label] if cls is published.Caltech101 else data.classes[label])


def test_every_set_is_tried_here() -> None:
    assert set(REFERENCE) == set(SETS)


@pytest.mark.parametrize("name", sorted(SETS))
def test_items_are_those_of_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, cls, splits = REFERENCE[name]
    make(tmp_path / "data", monkeypatch)
    config = compose([f"dataset={name}", f"dataset.root={tmp_path / 'data'}"]).dataset
    source = open_source(config, tmp_path / "memory")
    if name == "stl10":  # it wants its unlabelled images beside the others, which nobody here reads
        monkeypatch.setattr(cls, "train_list", cls.train_list[:2])
    expected = []
    for split, arguments in splits.items():
        data = cls(str(tmp_path / "data"), **arguments)
        expected += [(split, class_of(cls, data, label), np.asarray(image.convert("RGB"))) for image, label in data]
    assert len(source.items) == len(expected)
    for index, (item, (split, word, pixels)) in enumerate(zip(source.items, expected, strict=True)):
        assert (item.split, source.classes[item.label]) == (split, word)
        assert np.array_equal(np.asarray(source.load(index)), pixels)
    assert len({item.id for item in source.items}) == len(expected)
    assert source.decoded_in_memory == (name in IN_MEMORY)
    assert source.fingerprint == open_torchvision(name, str(tmp_path / "data"), download=False).fingerprint
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.load(1)), np.asarray(source.load(1)))


@pytest.mark.parametrize("name", sorted(SETS))
def test_missing_files_are_named_at_once(name: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        open_torchvision(name, str(tmp_path / "data"), download=False)
    assert time.perf_counter() - started < 10
    text = str(caught.value)
    assert text.startswith(f"{name}: {tmp_path / 'data'}")
    assert f"which torchvision's {REFERENCE[name][1].__name__} reads -> " in text
    assert ("dataset.download=true" in text) == (name != "stanford_cars")
    assert not (tmp_path / "data").exists()


def test_a_part_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(
        DataError, match=r"cifar10: .*cifar-10-batches-py has no data_batch_3, which torchvision's CIFAR10"
    ):
        open_torchvision("cifar10", str(tmp_path), download=False)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn", "flowers102"])
def test_files_that_are_not_the_published_ones_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        REFERENCE[name][0](tmp_path / "data", patched)
    with pytest.raises(DataError, match=rf"{name}: .* cannot be read as it was published \(.*corrupted"):
        open_torchvision(name, str(tmp_path / "data"), download=False)


def test_foreign_pickles_are_never_loaded(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        cifar10(tmp_path, patched)
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(canary), "w")

    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        path.write_bytes(pickle.dumps({"data": Bomb(), "labels": [0]}))
    with pytest.raises(DataError, match="corrupted"):
        open_torchvision("cifar10", str(tmp_path), download=False)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists()  # the bomb was a real one


def test_broken_images_are_found_with_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eurosat(tmp_path, monkeypatch)
    broken = tmp_path / "eurosat" / "2750" / "SeaLake" / "SeaLake_10.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    config = compose(["dataset=eurosat", f"dataset.root={tmp_path}", "dataset.on_bad=skip"]).dataset
    source = open_source(config, tmp_path / "memory")
    assert [item.id for item in source.items] == ["Forest/Forest_1.jpg", "SeaLake/SeaLake_2.jpg"]
    assert list(source.skipped) == ["SeaLake/SeaLake_10.jpg"]


def test_damaged_lists_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    food101(tmp_path, monkeypatch)
    (tmp_path / "food-101" / "meta" / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"food101: .*food-101 cannot be read as it was published") as caught:
        open_torchvision("food101", str(tmp_path), download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "given"), [("dtd", True), ("food101", False)])
def test_given_splits_are_used_and_the_others_carved(
    name: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    REFERENCE[name][0](tmp_path, monkeypatch)
    if not given:
        lists = {"ramen": [f"ramen/{n}" for n in range(5)], "gyoza": [f"gyoza/{n}" for n in range(5)]}
        (tmp_path / "food-101" / "meta" / "train.json").write_text(json.dumps(lists))
    opened = open_dataset(compose([f"dataset={name}", f"dataset.root={tmp_path}"]).dataset, seed=0)
    sizes = {split: len(indices) for split, indices in opened.whole.indices.items()}
    assert sizes == ({"train": 3, "val": 1, "test": 1} if given else {"train": 8, "val": 2, "test": 1})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a folder on this machine, and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_download(served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = served
    cifar10(tmp_path / "made", monkeypatch)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(published.CIFAR10, "url", f"{url}/cifar-10-python.tar.gz")
    monkeypatch.setattr(published.CIFAR10, "tgz_md5", md5(folder / "cifar-10-python.tar.gz"))
    config = compose(["dataset=cifar10", f"dataset.root={tmp_path / 'data'}", "dataset.download=true"]).dataset
    fetched = open_source(config)
    assert fetched.fingerprint == open_torchvision("cifar10", str(tmp_path / "made"), download=False).fingerprint
    (folder / "cifar-10-python.tar.gz").unlink()
    assert open_source(config).fingerprint == fetched.fingerprint  # nothing is fetched twice


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(published.CIFAR10, "url", url)
        started = time.perf_counter()
        with pytest.raises(
            DataError, match=r"cifar10: .* cannot be fetched \(.*timed out.*\) -> fetch it where there is"
        ):
            open_torchvision("cifar10", str(tmp_path), download=True)
        assert time.perf_counter() - started < 10
    assert socket.getdefaulttimeout() is None


def test_real_satellite_images(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eurosat" / "2750"
    folder.mkdir(parents=True)
    for name in ("Forest", "River"):
        (folder / name).symlink_to(shared_data / "eurosat" / "val" / name)
    source = open_torchvision("eurosat", str(tmp_path), download=False)
    assert source.classes == ("Forest", "River")
    files = sorted((shared_data / "eurosat" / "val" / "River").iterdir())
    index = next(n for n, item in enumerate(source.items) if item.id == f"River/{files[0].name}")
    assert np.array_equal(np.asarray(source.load(index)), np.asarray(Image.open(io.BytesIO(files[0].read_bytes()))))
