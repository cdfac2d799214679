"""A place in one stored object: sought where the storage can seek, else reached by reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from django_snapshots.exceptions import SnapshotError, SnapshotStorageError
from django_snapshots.storage.protocols import SnapshotStorage
from django_snapshots.transfer import CHUNK_SIZE


class Cursor:
    """Reads an object from any position on. Where its file can't be sought in, going back opens it anew."""

    def __init__(self, storage: SnapshotStorage, path: str) -> None:
        """Open the object; raises ``SnapshotNotFoundError``."""
        self._storage = storage
        self._path = path
        self._file: IO[bytes] = storage.read(path)
        self._position = 0
        self._seekable = self._file.seekable()

    def close(self) -> None:
        """Close the object's file."""
        self._file.close()

    def length(self) -> int | None:
        """Bytes of the object; ``None`` if only reading it could tell."""
        if not self._seekable:
            size = getattr(self._file, "size", None)
            return size if isinstance(size, int) else None
        self._position = self._file.seek(0, 2)
        return self._position

    def go_to(self, position: int) -> None:
        """The next read begins at *position*; beyond the end there is nothing to read."""
        if self._seekable:
            self._position = self._file.seek(position)
            return
        if position < self._position:
            self._file.close()
            self._file = self._storage.read(self._path)
            self._position = 0
        for _ in self.chunks(position - self._position):
            pass

    def take(self, size: int) -> bytes:
        """The next *size* bytes, or what there is of them; for small ones."""
        return b"".join(self.chunks(size))

    def chunks(self, size: int) -> Iterator[bytes]:
        """The next *size* bytes, or what there is of them, in chunks."""
        while size > 0 and (chunk := self._read(min(size, CHUNK_SIZE))):
            self._position += len(chunk)
            size -= len(chunk)
            yield chunk

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except SnapshotError:
            raise
        except Exception as error:  # a storage's own library raises what it likes
            raise SnapshotStorageError(f"Could not read {self._path!r} to its end: {error}") from error
