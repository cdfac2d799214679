"""Writes a stream into a program's standard input from a thread of its own, while its output is read elsewhere."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self

from django_snapshots.processes import Tool


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of *data* to a pipe; raises ``BrokenPipeError`` once nobody reads it any more."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Feeder:
    """Feeds *chunks* to *tool*. Leaving its context before ``finish`` returned kills the program."""

    def __init__(self, tool: Tool, chunks: Iterable[bytes], *, to_the_end: bool = False) -> None:
        """With *to_the_end* every chunk is taken, also when the program has read enough: that proves their digests."""
        self._tool = tool
        self._chunks = chunks
        self._to_the_end = to_the_end
        self._abandoned = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"{tool.name}-stdin", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the thread; raise what *chunks* raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned.set()
        if self._thread.is_alive():
            self._tool.kill()
        self._thread.join()

    def _run(self) -> None:
        try:
            # Closing the pipe tells the program that this was all; after a failure it must take it for truncated.
            with self._tool.stdin as stdin:
                self._feed(stdin.fileno())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks for it
            self._failure = error
        finally:
            # A pass that was left early is closed in the thread that made it.
            if isinstance(self._chunks, Generator):
                self._chunks.close()

    def _feed(self, descriptor: int) -> None:
        reading = True
        for chunk in self._chunks:
            if self._abandoned.is_set():
                return
            if reading:
                reading = self._write(descriptor, chunk)
            if not reading and not self._to_the_end:
                return

    def _write(self, descriptor: int, chunk: bytes) -> bool:
        with contextlib.suppress(BrokenPipeError):
            write_all(descriptor, chunk)
            return True
        return False
