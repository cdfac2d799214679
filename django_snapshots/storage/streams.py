"""The engine's view of a storage: chunks in, chunks out, whichever tier it is of."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

from django_snapshots.exceptions import SnapshotError, SnapshotStorageError
from django_snapshots.storage.paths import check_prefix, join
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage
from django_snapshots.transfer import CHUNK_SIZE

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def read_chunks(storage: SnapshotStorage, path: str) -> Iterator[bytes]:
    """The object's bytes in chunks. Nothing is opened before the first; close the iterator if you stop early.

    A missing object raises ``SnapshotNotFoundError``, a storage that fails raises ``SnapshotStorageError``.
    """
    if isinstance(storage, AdvancedSnapshotStorage):
        yield from storage.stream_read(path)
        return
    file = storage.read(path)
    try:
        while chunk := _read(file, path):
            yield chunk
    finally:
        file.close()


def write_chunks(storage: SnapshotStorage, path: str, chunks: Iterator[bytes]) -> None:
    """Store all *chunks* at *path*. What *chunks* raises comes out as it is, whatever the storage makes of it."""
    if isinstance(storage, AdvancedSnapshotStorage):
        _stream(storage, path, _Remembered(chunks))
        return
    source = _ChunkSource(chunks)
    # Buffered, because a storage may take a short read for the end.
    reader = cast(IO[bytes], io.BufferedReader(source, CHUNK_SIZE))
    try:
        storage.write(path, reader)
    except Exception:
        if source.error is not None:
            raise source.error from None
        raise
    _ensure_taken(storage, path, source, reader)


def walk(storage: SnapshotStorage, prefix: str) -> list[str]:
    """Every object below *prefix* (or at it), sorted, each as its whole path from the root.

    A backend of the basic tier may have ``recursive_list`` too; without it this lists directory by directory and asks
    ``exists`` of each child, because the basic tier's list does not say which children are objects.
    """
    if callable(getattr(storage, "recursive_list", None)):
        return cast(AdvancedSnapshotStorage, storage).recursive_list(prefix)
    root = check_prefix(prefix)
    at_root = [root] if root and storage.exists(root) else []
    return sorted({*at_root, *_walk(storage, root)})


def _walk(storage: SnapshotStorage, prefix: str) -> Iterator[str]:
    for name in storage.list(prefix):
        path = join(prefix, name)
        if storage.exists(path):
            yield path
        else:
            yield from _walk(storage, path)


def _read(file: IO[bytes], path: str) -> bytes:
    try:
        return file.read(CHUNK_SIZE)
    except SnapshotError:
        raise
    except Exception as error:  # a storage's own library raises what it likes
        raise SnapshotStorageError(f"Could not read {path!r} to its end: {error}") from error


def _stream(storage: AdvancedSnapshotStorage, path: str, source: _Remembered) -> None:
    """The same disbelief as ``_ensure_taken``'s: what was counted and hashed is only what was read."""
    try:
        storage.stream_write(path, source.passed_on())
    except Exception:
        if source.error is not None:
            raise source.error from None
        raise
    if source.error is not None:
        raise source.error
    if source.has_more():
        raise SnapshotStorageError(f"{type(storage).__name__} stored only a part of {path!r} and reported success.")


def _ensure_taken(storage: SnapshotStorage, path: str, source: _ChunkSource, reader: IO[bytes]) -> None:
    """Never believe a storage that stopped before the end, or that hid the error that it met."""
    if source.error is None and not reader.closed and reader.read(1):
        raise SnapshotStorageError(f"{type(storage).__name__} stored only a part of {path!r} and reported success.")
    if source.error is not None:
        raise source.error
    if not source.ended:
        raise SnapshotStorageError(f"{type(storage).__name__} closed {path!r} before its end and reported success.")


class _Remembered:
    """Chunks on their way into a storage; remembers the error that they had, and whether they came to their end."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._ended = False
        self.error: BaseException | None = None

    def passed_on(self) -> Iterator[bytes]:
        # Not "yield from": a storage that closes this early must not close what has_more still asks.
        while not self._ended:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                self._ended = True
            except BaseException as error:
                self.error = error
                raise
            else:
                yield chunk

    def has_more(self) -> bool:
        return not self._ended and any(self._chunks)


class _ChunkSource(io.RawIOBase):
    """A file that can only be read forwards, over an iterator of chunks; remembers the error that the iterator had."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self.error: BaseException | None = None
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._rest and not self.ended:
            self._advance()
        target = memoryview(buffer)
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _advance(self) -> None:
        if self.error is not None:
            raise self.error
        try:
            self._rest = memoryview(next(self._chunks))
        except StopIteration:
            self.ended = True
        except BaseException as error:
            self.error = error
            raise
