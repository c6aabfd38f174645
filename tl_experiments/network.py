"""Questions to servers that may not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
REQUEST_S = 4.0  # of one request, where its library takes a limit
ANSWER_S = 8.0  # of a question with all that belongs to it


def answer(question: Callable[[], T]) -> T:
    """What ``question`` returns or raises; name servers and dead routes know no time limit.

    Raises:
        TimeoutError: There was no answer within ``ANSWER_S``.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            result.append(question())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError(f"no answer within {ANSWER_S:g} s")
    return result[0]
