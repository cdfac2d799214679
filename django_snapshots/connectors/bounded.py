"""Questions that get an answer within a time, or none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def within(seconds: float, question: Callable[[], Answer]) -> Answer:
    """What *question* returns or raises; ``TimeoutError`` after *seconds*.

    No option of a driver bounds all of it: a name that isn't resolved, several addresses one after the other, a pooler
    that takes the connection and lets the query wait. So the question has a thread of its own, which is left to end by
    itself; it must start no program and change nothing that a late change could harm.
    """
    future: Future[Answer] = Future()

    def ask() -> None:
        try:
            future.set_result(question())
        except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
            future.set_exception(error)

    threading.Thread(target=ask, name="bounded-question", daemon=True).start()
    return future.result(timeout=seconds)
