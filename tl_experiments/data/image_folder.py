"""Images in one folder a class, split or not. Labels go by the class's name, never by a folder's position."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tl_experiments.data.checking import Files
from tl_experiments.data.decode import MAX_PIXELS
from tl_experiments.data.endings import ENDINGS, ending, passed_over
from tl_experiments.data.items import SPLITS, Item, Source, Split
from tl_experiments.data.labels import listed
from tl_experiments.errors import DataError
from tl_experiments.user_paths import expanded

LAYOUT = "root/train|val|test/<class>/<image> or root/<class>/<image>"
_KEY = "dataset.root"

_Folders = dict[tuple[Split | None, str], list[str]]  # (split, class) -> names of its files


def open_image_folder(
    root: str,
    allow_empty: bool,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    digests: Path | None = None,
    min_classes: int = 2,
) -> Source:
    """Read ``root/train|val|test/<class>/<image>`` or ``root/<class>/<image>``.

    The splits' folders must have exactly these names, and images stand directly in their class's folder: what lies
    elsewhere is an error, so that no image goes missing without a word. Files with the ending of no image are passed
    over, with a note unless they are texts or tables; everything hidden (with a leading dot) is ignored. The classes
    are those of train, sorted as text.

    Args:
        root: The folder; ``~`` and environment variables are expanded.
        allow_empty: Leave class folders without an image out, with a note, instead of refusing them.
        channels: That every image is loaded with; see ``load_image``.
        max_pixels: Of the largest image that is decoded.
        digests: Folder in which is remembered what is known of the files; None reads every file for the fingerprint.
        min_classes: Fewer are refused.

    Raises:
        DataError: The root is missing, a file, empty or laid out otherwise; there is no train split; a class folder is
            empty; val or test has a class that train has not; there are too few classes; a file cannot be read.
    """
    folder = expanded(root)
    files_of = _scan(folder)
    found = {key: [name for name in files if ending(name) in ENDINGS] for key, files in files_of.items()}
    empty = ["/".join(filter(None, key)) for key, files in found.items() if not files]
    if empty and not allow_empty:
        what = f"{len(empty)} class folders without an image ({listed(empty)})"
        raise DataError(_KEY, what, "fill or remove them, or dataset.allow_empty=true to leave them out")
    notes: tuple[str, ...] = (f"Left out for want of images: {listed(empty)}.",) if empty else ()
    if others := passed_over(name for files in files_of.values() for name in files):
        notes += (f"{others}: the ending is no image's.",)
    filled = {key: files for key, files in found.items() if files}
    classes = _classes(filled, min_classes)
    label = {name: number for number, name in enumerate(classes)}
    paths: list[str] = []
    items: list[Item] = []
    for (split, name), files in filled.items():
        for file in files:
            paths.append("/".join(filter(None, (split, name, file))))
            items.append(Item(paths[-1], label[name], split))
    images = Files(folder, paths, channels, max_pixels, digests)
    return Source(classes, tuple(items), images.load, images.digests, notes, check=images.check)


def _scan(root: Path) -> _Folders:
    if not root.is_dir():
        seen = "is a file" if root.exists() else "does not exist"
        raise DataError(_KEY, f"{root} {seen}, expected a folder: {LAYOUT}", "correct the path")
    folders, _ = _list(root)
    splits = [split for split in SPLITS if split in folders]
    if not splits:
        return {(None, name): files for name, files in _class_folders(root).items()}
    if strangers := sorted(set(folders).difference(SPLITS)):
        what = f"{root} has {listed(strangers)} beside {listed(splits)}, expected only train, val and test"
        raise DataError(_KEY, what, "rename it (validation and valid are val), or move it away")
    if "train" not in splits:
        what = f"{root} has {listed(splits)} and no train, expected {LAYOUT}"
        raise DataError(_KEY, what, "add a train folder: the classes are read from it")
    return {(split, name): files for split in splits for name, files in _class_folders(root / split).items()}


def _class_folders(folder: Path) -> Mapping[str, list[str]]:
    names, files = _list(folder)
    if images := [name for name in files if ending(name) in ENDINGS]:
        what = f"{folder} has {len(images)} images outside a class folder ({listed(images)}), expected {LAYOUT}"
        raise DataError(_KEY, what, "put each image into a folder named after its class")
    if not names:
        raise DataError(_KEY, f"{folder} has no class folders, expected {LAYOUT}", "correct the path or add images")
    content = {name: _list(folder / name) for name in names}
    for name, (inner, _) in content.items():
        if inner:
            what = f"class folder {folder / name} has folders in it ({listed(inner)}), expected {LAYOUT}"
            raise DataError(_KEY, what, "put the images directly into their class's folder")
    return {name: files for name, (_, files) in content.items()}


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the visible folders and files in ``folder``, each sorted as text."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(_KEY, f"{folder} cannot be read ({error.strerror})", "check its permissions") from error
    # a dangling link is listed as a file, so that reading it fails instead of passing it over
    return [name for name, is_dir in visible if is_dir], [name for name, is_dir in visible if not is_dir]


def _classes(filled: _Folders, min_classes: int) -> tuple[str, ...]:
    """The classes of train, or of the whole folder where it is not split; those of val and test lie within."""
    classes = sorted({name for split, name in filled if split in (None, "train")})
    extra = [f"{split}/{name}" for split, name in filled if name not in classes]
    if extra:
        what = f"{listed(extra)} without images of that class in train, which has {listed(classes)}"
        raise DataError(_KEY, what, "add the class to train, or remove it from the other split")
    if len(classes) < min_classes:
        what = f"{len(classes)} class ({listed(classes)}), expected {min_classes} or more"
        raise DataError(_KEY, what, "add another class folder")
    return tuple(classes)
