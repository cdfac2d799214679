"""Counts and digests of what passes by.

The stored bytes get SHA-256, which ``sha256sum`` prints; the plain content, which is the larger side, gets BLAKE3,
which is faster than any dump tool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol

import blake3


class Hash(Protocol):
    """The part of ``hashlib``'s objects that is used here."""

    def update(self, data: bytes, /) -> object:
        """Take *data* in."""

    def hexdigest(self) -> str:
        """The digest of everything so far."""


def _sha256() -> Hash:
    return hashlib.sha256()


def _blake3() -> Hash:
    return blake3.blake3()


_ALGORITHMS: tuple[tuple[str, Callable[[], Hash]], ...] = (("sha256", _sha256), ("blake3", _blake3))


class Tally:
    """A stage that counts and hashes; ``size`` and ``digest`` are complete once its output has ended."""

    def __init__(self, algorithm: str) -> None:
        self.size = 0
        self._algorithm = algorithm
        self._hash = dict(_ALGORITHMS)[algorithm]()

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        """``algorithm:hex`` of all bytes so far."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def stored_tally() -> Tally:
    """The tally of stored bytes: SHA-256."""
    return Tally("sha256")


def content_tally() -> Tally:
    """The tally of plain content: BLAKE3."""
    return Tally("blake3")
