"""A line of progress on a terminal."""

from __future__ import annotations

import threading
from time import monotonic
from types import TracebackType
from typing import Self

from django.core.management.base import OutputWrapper

from django_snapshots.sizes import human_size

_REDRAW_SECONDS = 0.2
_CLEAR = "\r\x1b[K"


class Progress:
    """How many bytes of each subject went by, on one line that is drawn anew; silent unless *shown*."""

    def __init__(self, output: OutputWrapper, *, shown: bool) -> None:
        self._output = output
        self._shown = shown
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._started = self._drawn = monotonic()

    def moved(self, what: str, count: int) -> None:
        """*count* more bytes of *what* went by; may be called from any thread."""
        with self._lock:
            self._bytes[what] = self._bytes.get(what, 0) + count
            self._draw()

    def at(self, what: str, total: int) -> None:
        """*total* bytes of *what* went by so far."""
        with self._lock:
            self._bytes[what] = total
            self._draw()

    def waiting(self, sentence: str) -> None:
        """Nothing moves yet."""
        with self._lock:
            self._draw(sentence)

    def _draw(self, sentence: str | None = None) -> None:
        now = monotonic()
        if not self._shown or now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        parts = [f"{what} {human_size(count)}" for what, count in self._bytes.items()]
        line = sentence or "  ".join([*parts, f"{now - self._started:.0f} s"])
        self._output.write(f"{_CLEAR}{line}", ending="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._output.write(_CLEAR, ending="")
