"""Which files of a folder are taken for images, by how their names end, and a word on those that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

# Of every format that ``decode`` reads: what is inside decides how a file is read, the ending only whether.
ENDINGS = frozenset(
    {
        *(".avif", ".avifs", ".bmp", ".gif", ".webp", ".png", ".apng", ".tif", ".tiff", ".npy"),
        *(".jpg", ".jpeg", ".jpe", ".jfif"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    }
)
_BESIDE_IMAGES = frozenset({".txt", ".csv", ".json", ".md"})  # nobody takes them for images that went missing
_SHOWN = 5


def ending(name: str) -> str:
    """``.jpg`` of ``A.JPG``; empty where there is none."""
    return PurePath(name).suffix.lower()


def passed_over(names: Iterable[str]) -> str:
    """``3 files passed over (2 .heic, 1 without ending)``, of the files that are no images; empty where none is."""
    counts = Counter(ending(name) for name in names)
    for one in (*ENDINGS, *_BESIDE_IMAGES):
        del counts[one]
    if not counts:
        return ""
    total = counts.total()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {one or 'without ending'}" for one, count in ranked[:_SHOWN]]
    more = ", ..." if len(ranked) > _SHOWN else ""
    return f"{total} file{'s' if total > 1 else ''} passed over ({', '.join(listed)}{more})"
