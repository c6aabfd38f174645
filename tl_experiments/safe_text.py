"""Text that can do no harm where it is shown or kept: terminals, spreadsheets, other people's servers."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Marks that reorder the text around them: a name could make a table read backwards.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # spreadsheets run the full-width forms as well
_SECRET_WORDS = r"(?:api|access)?key|token|secret|pass(?:word|wd)|pwd|credentials?"
_SECRET_NAME = re.compile(rf"(?:^|[\W_])(?:{_SECRET_WORDS})$", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    rf"((?:\b|_)(?:{_SECRET_WORDS})[\"']?\s*[=:]\s*)(?!(?:true|false|null|[\d.]+)\b)[^\s&,;]+", re.IGNORECASE
)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_SHORTEST_SECRET = 8  # of the environment; shorter values stand in harmless text by chance
REDACTED = "***"


def plain(text: str) -> str:
    """Text that cannot steer a terminal: one line, without control codes, reordering marks or lone surrogates."""
    return one_line(" ".join(text.split()))


def one_line(text: str) -> str:
    """``plain`` that keeps blanks as they are, for lines whose columns stand below each other."""
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs":
            kept.append("\ufffd")
        elif character.isspace():
            kept.append(" ")
        elif category != "Cc" and character not in _BIDI:
            kept.append(character)
    return "".join(kept)


def storable(text: str) -> str:
    """Text that every file takes: bytes of a file name that are not UTF-8 are written out, as in ``caf\\xe9.jpg``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def csv_text(text: str) -> str:
    """A text cell that no spreadsheet runs: what would be read as a formula gets an apostrophe before it."""
    safe = plain(text)
    return f"'{safe}" if safe.startswith(_FORMULA) else safe


def redacted_text(text: str) -> str:
    """Text without credentials: those in URLs, after ``token=`` and the like, and the environment's own."""
    return _without(_secrets_of_the_environment(), text)


def redacted(value: Any) -> Any:
    """Plain values without secrets: texts under a key such as ``api_key`` or ``token``, and credentials in any text."""
    return _redacted(value, _secrets_of_the_environment())


def _redacted(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(item, str) and _SECRET_NAME.search(str(key)) else _redacted(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redacted(item, secrets) for item in value]
    return _without(secrets, value) if isinstance(value, str) else value


def _secrets_of_the_environment() -> list[str]:
    # PWD is the shell's word for the working directory, in which the data may well be
    named = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and name != "PWD"]
    return [value for value in named if len(value) >= _SHORTEST_SECRET]


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return _ASSIGNMENT.sub(rf"\1{REDACTED}", _URL_CREDENTIALS.sub(f"{REDACTED}@", text))
