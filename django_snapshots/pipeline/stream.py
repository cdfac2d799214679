"""Stages and chains: what one pass over the bytes is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol


class Stage(Protocol):
    """Maps chunks to chunks. What it found out (a digest, a count) may be read once its output has ended."""

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Return an iterator that reads *chunks* only as it is read itself."""


def chain(*stages: Stage) -> Stage:
    """Return one stage that is all of *stages* in turn; an empty chain passes everything through."""

    def run(chunks: Iterator[bytes]) -> Iterator[bytes]:
        for stage in stages:
            chunks = stage(chunks)
        return chunks

    return run


class Watch:
    """Passes chunks on unchanged and tells *observe* the length of each before it goes on.

    *observe* may raise: that is how a run is cancelled in the middle of a stream.
    """

    def __init__(self, observe: Callable[[int], None]) -> None:
        self._observe = observe

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._observe(len(chunk))
            yield chunk


def close(chunks: Iterator[bytes]) -> None:
    """Close a generator that may not have been read to its end, so that what is behind it is released now."""
    closer = getattr(chunks, "close", None)
    if closer is not None:
        closer()


@contextlib.contextmanager
def closing_chunks(chunks: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Close *chunks* at the end of a ``with`` block, whatever happened in it."""
    try:
        yield chunks
    finally:
        close(chunks)
