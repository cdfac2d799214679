"""A storage that gives back other bytes than before, as a failing disk or somebody who writes in between would."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import IO, Any

from django_snapshots import LocalFileSystemBackend


class TurningStorage(LocalFileSystemBackend):
    """After ``honest`` passes over the object ``victim``, each later one has one byte changed, ``place`` of the way.

    With ``once`` the next one alone has, and those behind it are as they should be.
    """

    victim = ""
    honest = 1_000_000
    place = 0.5
    once = False
    passes = 0

    @classmethod
    def turn(cls, victim: str, *, honest: int, place: float, once: bool = False) -> None:
        """Begin to count."""
        cls.victim, cls.honest, cls.place, cls.once, cls.passes = victim, honest, place, once, 0

    def _turned(self, path: str) -> bytes | None:
        if path != self.victim:
            return None
        type(self).passes += 1
        if self.passes <= self.honest or (self.once and self.passes > self.honest + 1):
            return None
        with super().read(path) as file:
            content = bytearray(file.read())
        content[int((len(content) - 1) * self.place)] ^= 0x01
        return bytes(content)

    def read(self, path: str) -> IO[Any]:
        turned = self._turned(path)
        return super().read(path) if turned is None else BytesIO(turned)

    def stream_read(self, path: str) -> Iterator[bytes]:
        turned = self._turned(path)
        return super().stream_read(path) if turned is None else iter([turned])
