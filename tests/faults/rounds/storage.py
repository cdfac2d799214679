"""A storage that is slow, stops where it is told to, and breaks when it is told to.

It says in a log what it does. What it is told lies in a file beside it, ``orders.json``: ``pause`` and ``at`` name a
phase; a worker that comes to it says so (``paused``) and waits for ``go``. So a fault hits the moment that it is meant
for.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django_snapshots.storage.local import LocalFileSystemBackend

PHASES = ("dump-first", "dump-middle", "dump-end", "stored", "move", "moved", "manifest", "listed")
_PIECE = 256 * 1024
_MIDDLE = 5
_PATIENCE = 60.0


class FaultyStorage(LocalFileSystemBackend):
    """A directory, with *control* as the directory of orders."""

    def __init__(self, *, location: str, control: str) -> None:
        super().__init__(location=location)
        self._control = Path(control)

    def stream_write(self, path: str, chunks: Iterator[bytes]) -> None:
        """In slow motion."""
        super().stream_write(path, self._watched(path, chunks))
        if _is_artifact(path):
            self._reach("stored", path)

    def _watched(self, path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        if not _is_artifact(path):
            yield from chunks
            return
        # The compressor gives a few large chunks.
        pieces = (chunk[at : at + _PIECE] for chunk in chunks for at in range(0, len(chunk), _PIECE))
        for number, piece in enumerate(pieces):
            self._reach("dump-first" if number == 0 else "dump-middle" if number == _MIDDLE else "", path)
            time.sleep(self._orders().get("seconds_per_chunk", 0.0))
            yield piece
        self._reach("dump-end", path)

    def atomic_move(self, src: str, dst: str) -> None:
        """Say before and after what is moved."""
        is_manifest = dst.endswith("/manifest.json")
        self._reach("manifest" if is_manifest else "move", dst)
        super().atomic_move(src, dst)
        self._say("LISTED" if is_manifest else "MOVED", dst)
        self._reach("listed" if is_manifest else "moved", dst)

    def _reach(self, phase: str, path: str) -> None:
        orders = self._orders()
        if self.tombstoned(path):
            return
        self._break(orders, phase, path)
        if not phase:
            return
        self._say(phase, path)
        if orders.get("pause") == phase and self._first("paused"):
            self._wait_for("go")

    def tombstoned(self, path: str) -> bool:
        """Whether this is about a delete, which no order is for."""
        return path.endswith("/tombstone.json")

    def _break(self, orders: dict[str, Any], phase: str, path: str) -> None:
        if orders.get("full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if phase and orders.get("fail") == phase and self._first("failed"):
            raise OSError(errno.EIO, "the storage broke as it was told to", path)
        if phase and orders.get("hang") == phase and self._first("hung"):
            self._wait_for("unhang")

    def _orders(self) -> dict[str, Any]:
        try:
            orders: dict[str, Any] = json.loads((self._control / "orders.json").read_text())
        except FileNotFoundError:
            return {}
        return orders

    def _first(self, name: str) -> bool:
        """Whether nobody has done this before in this round."""
        try:
            with open(self._control / name, "x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True

    def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not (self._control / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _say(self, phase: str, path: str) -> None:
        with open(self._control / "log", "a") as file:
            file.write(f"{time.time():.3f} {os.getpid()} {phase} {path}\n")

    def delete(self, path: str) -> None:
        """Say when a manifest goes."""
        was_there = path.endswith("/manifest.json") and self.exists(path)
        super().delete(path)
        if was_there:
            self._say("UNLISTED", path)


def _is_artifact(path: str) -> bool:
    """Whether an attempt stores an artifact there, and nobody a manifest or the storage's own marker."""
    name = path.rpartition("/")[2]
    return "/" in path and not name.startswith(("manifest.json", ".django-snapshots"))
