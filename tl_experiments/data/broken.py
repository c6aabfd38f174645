"""What becomes of images that cannot be used: named before training, or left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tl_experiments.data.items import Checked, Picture, Source
from tl_experiments.errors import DataError
from tl_experiments.records import write_atomically
from tl_experiments.safe_text import csv_text, storable

BAD_IMAGES_FILE = "bad_images.csv"
_SHOWN = 5


def refuse_bad(source: Source, folder: Path) -> None:
    """Name the images that cannot be used, all of them in a file below ``folder``.

    Raises:
        DataError: There are some.
    """
    bad = bad_images(source)
    if not bad:
        return
    listed = ", ".join(f"{one.path} ({one.problem})" for one in bad[:_SHOWN]) + (", ..." if len(bad) > _SHOWN else "")
    path = write_bad_images(bad, folder / BAD_IMAGES_FILE)
    what = f"{len(bad)} of {len(source.items)} images cannot be used: {listed}"
    fix = "replace or remove them, or dataset.on_bad=skip to leave them out"
    raise DataError("dataset", what, f"{fix}; all of them: {path}")


def bad_images(source: Source) -> list[Checked]:
    """The images of a source that cannot be used; the first call reads and decodes them all."""
    return [] if source.check is None else [one for one in source.check() if one.problem is not None]


def write_bad_images(bad: Sequence[Checked], path: Path) -> Path:
    """A table of paths and reasons, as text that no spreadsheet runs."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["path", "reason"])
    rows.writerows([csv_text(storable(one.path)), csv_text(storable(one.problem or ""))] for one in bad)
    return write_atomically(path, stream.getvalue())


def without_bad(source: Source) -> Source:
    """The source without the images that cannot be used; what is left is numbered anew.

    Raises:
        DataError: A class of train, or of what is not split, is left without an image.
    """
    if not bad_images(source):
        return source
    assert source.check is not None
    checked = source.check()
    kept = [index for index, one in enumerate(checked) if one.problem is None]
    items, skipped = [source.items[index] for index in kept], {}
    for item, one in zip(source.items, checked, strict=True):
        if one.problem is not None:
            skipped[item.id] = one.problem
    _refuse_empty_classes(source, {item.label for item in items if item.split in (None, "train")}, skipped)
    listed = ", ".join(f"{item} ({why})" for item, why in list(skipped.items())[:_SHOWN])
    more = ", ..." if len(skipped) > _SHOWN else ""
    note = f"Left out {len(skipped)} images that cannot be used: {listed}{more}."
    return replace(_only(source, kept), notes=(*source.notes, note), skipped=skipped)


def _only(source: Source, kept: Sequence[int]) -> Source:
    """The source with some of its items, numbered anew, in the order of ``kept``."""
    return replace(
        source,
        items=tuple(source.items[index] for index in kept),
        load=partial(_renumbered, source.load, kept),
        contents=partial(_some_contents, source, kept),
        check=None if source.check is None else partial(_some_checked, source.check, kept),
    )


def _refuse_empty_classes(source: Source, left: set[int], skipped: dict[str, str]) -> None:
    there = {item.label for item in source.items if item.split in (None, "train")}
    if empty := [source.classes[label] for label in sorted(there - left)]:
        what = f"no image of {', '.join(empty[:_SHOWN])} can be used ({len(skipped)} images in all cannot)"
        raise DataError("dataset.on_bad", what, "replace them, or remove the class")


def _renumbered(load: Callable[[int], Picture], kept: Sequence[int], index: int) -> Picture:
    return load(kept[index])


def _some_checked(check: Callable[[], Sequence[Checked]], kept: Sequence[int]) -> list[Checked]:
    checked = check()
    return [checked[index] for index in kept]


def _some_contents(source: Source, kept: Sequence[int]) -> list[str | bytes]:
    assert source.check is not None
    return [bytes.fromhex(one.digest) for one in _some_checked(source.check, kept)]
