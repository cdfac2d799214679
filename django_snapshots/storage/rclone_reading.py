"""An object of a remote as an open file that is read forwards, while rclone fetches it."""

from __future__ import annotations

import io
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from django_snapshots.exceptions import SnapshotStorageError
from django_snapshots.processes import Tool
from django_snapshots.storage.rclone_program import failed, words_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Fetch(io.RawIOBase):
    """The output of one ``rclone cat``; its end is believed only after a good exit status and *size* bytes.

    A *size* below zero is one that the remote does not know. Read it in the thread that made it; *held* is left at its
    close.
    """

    def __init__(self, held: ExitStack, tool: Tool, *, what: str, size: int, head: bytes, chunk_size: int) -> None:
        self.size = size
        self._held = held
        self._tool = tool
        self._what = what
        self._chunks = tool.chunks(chunk_size)
        self._rest = memoryview(head)
        self._count = len(head)
        self._ended = not head
        if self._ended:
            self._check()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._rest:
            self._rest = memoryview(self.chunk())
        target = memoryview(buffer)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def chunk(self) -> bytes:
        """The next bytes; empty at the end, which has been proved then."""
        if self._rest:
            taken, self._rest = bytes(self._rest), memoryview(b"")
            return taken
        chunk = b"" if self._ended else next(self._chunks, b"")
        self._count += len(chunk)
        if not chunk and not self._ended:
            self._ended = True
            self._check()
        return chunk

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()

    def _check(self) -> None:
        if self._tool.wait() != 0:
            raise failed(f"read {self._what} to its end", words_of(self._tool))
        if self.size >= 0 and self._count != self.size:
            raise SnapshotStorageError(
                f"Could not read {self._what} to its end: it has {self.size} bytes, and {self._count} came. Was it "
                "replaced at this moment?"
            )


class RemoteFile(io.BufferedReader):
    """What ``RcloneBackend.read`` returns; ``size`` is the object's, in bytes, if the remote knows it."""

    def __init__(self, fetch: Fetch, buffer_size: int) -> None:
        super().__init__(cast(io.RawIOBase, fetch), buffer_size)
        self.size = fetch.size if fetch.size >= 0 else None
