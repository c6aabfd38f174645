"""Further test sets: images of the same classes from elsewhere, on which nothing is trained and nothing is chosen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from tl_experiments.data.checking import check_loaded
from tl_experiments.data.csv_file import open_csv
from tl_experiments.data.decode import MAX_PIXELS
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.items import SPLITS, Checked, Item, Picture, Source
from tl_experiments.data.labels import listed
from tl_experiments.errors import DataError
from tl_experiments.user_paths import expanded

LAYOUT = "root/<class>/<image> or root/test/<class>/<image>"


def with_tests(source: Source, tests: Mapping[str, Source]) -> Source:
    """Append test sets to a source, so that all that is done with its images is done with theirs.

    Their items come in the split ``test/<name>`` and are called ``<name>:<id>``. Classes go by their names.

    Args:
        source: The dataset.
        tests: Name -> test set, whatever splits its items come in.

    Raises:
        DataError: A test set has a class that the dataset lacks.
    """
    if not tests:
        return source
    label = {name: number for number, name in enumerate(source.classes)}
    items, notes, every = list(source.items), list(source.notes), [source, *tests.values()]
    for name, test in tests.items():
        if strangers := [one for one in test.classes if one not in label]:
            what = f"{listed(strangers)} among its classes, expected only {listed(source.classes)}"
            raise DataError(f"dataset.tests.{name}", what, "name its classes as the dataset does, or move them away")
        split = f"test/{name}"
        items += [Item(f"{name}:{item.id}", label[test.classes[item.label]], split) for item in test.items]
        notes += [f"{split}: {note}" for note in test.notes]
    starts = [0, *accumulate(len(one.items) for one in every)]
    return replace(
        source,
        items=tuple(items),
        load=partial(_load, tuple(starts), tuple(one.load for one in every)),
        contents=partial(_contents, every),
        notes=tuple(notes),
        decoded_in_memory=all(one.decoded_in_memory for one in every),
        check=partial(_check, every) if any(one.check for one in every) else None,
    )


def open_test_set(
    name: str,
    path: str,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    digests: Path | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Read ``path/test/<class>/<image>`` where there is such a folder, else ``path/<class>/<image>``; or a csv file.

    Class folders without an image count as missing. Of a table with a column ``split`` the rows of test are read.

    Args:
        name: Of the test set.
        path: The folder or file; ``~`` and environment variables are expanded.
        classes: Of the dataset, for labels of a table; None takes the table's own.
        channels: That every image is loaded with.
        max_pixels: Of the largest image that is decoded.
        digests: As in ``open_image_folder``.

    Raises:
        DataError: The folder or file is missing, empty or laid out otherwise.
    """
    key, root = f"dataset.tests.{name}", expanded(path)
    if root.suffix.lower() == ".npz" and root.is_file():
        what = f"{root} is an npz file, expected a folder of images or a csv file"
        raise DataError(key, what, f"write its images into a folder a class, {LAYOUT}")
    if root.is_file():
        try:
            table = open_csv(
                path, classes=classes, channels=channels, max_pixels=max_pixels, digests=digests, test_set=True
            )
        except DataError as error:
            raise DataError(f"{key} {error.thing}", error.what, error.fix) from None
        return replace(table, notes=())  # those are about training
    given = [split for split in SPLITS if (root / split).is_dir()]
    if given and "test" not in given:
        what = f"{root} has {listed(given)} and no test, expected {LAYOUT}"
        raise DataError(key, what, f"name the folder of the classes, for example {root / given[-1]}")
    folder = root / "test" if given else root
    try:
        return open_image_folder(str(folder), True, channels, max_pixels, digests, min_classes=1)
    except DataError as error:
        raise DataError(key, error.what, error.fix) from None


def _load(starts: Sequence[int], loads: Sequence[Callable[[int], Picture]], index: int) -> Picture:
    number = bisect_right(starts, index) - 1
    return loads[number](index - starts[number])


def _contents(sources: Sequence[Source]) -> Iterator[str | bytes]:
    for source in sources:
        yield from source.contents()


def _check(sources: Sequence[Source]) -> list[Checked]:
    return [one for source in sources for one in (source.check or partial(check_loaded, source))()]
