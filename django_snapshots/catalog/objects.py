"""What the catalog does with single objects of a storage, whichever format they are part of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TypeVar

from django_snapshots.exceptions import SnapshotExistsError, SnapshotIntegrityError, SnapshotNotFoundError
from django_snapshots.manifest import ArtifactRecord
from django_snapshots.pipeline.digest import stored_tally
from django_snapshots.pipeline.stream import closing_chunks
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage
from django_snapshots.storage.streams import read_chunks

Read = TypeVar("Read")

_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.05


def label(storage: SnapshotStorage) -> str:
    """What and where a storage is, for people."""
    return str(getattr(storage, "label", "") or type(storage).__name__)


def size_of(storage: SnapshotStorage, path: str) -> int:
    """Bytes of the object at *path*; raises ``SnapshotNotFoundError``."""
    if callable(size_method := getattr(storage, "size", None)):
        return int(size_method(path))
    with storage.read(path) as file:
        size = getattr(file, "size", None)
        if isinstance(size, int):
            return size
        if file.seekable():
            return file.seek(0, 2)
    return sum(len(chunk) for chunk in read_chunks(storage, path))


def small(storage: SnapshotStorage, path: str, most: int) -> bytes:
    """The object at *path*, or its beginning with some bytes more than *most*."""
    content = b""
    with closing_chunks(read_chunks(storage, path)) as chunks:
        for chunk in chunks:
            content += chunk
            if len(content) > most:
                break
    return content


def create(storage: SnapshotStorage, path: str, content: bytes, *, unique: str) -> None:
    """Write *path* unless it exists, exclusively where the storage has a way to; raises ``SnapshotExistsError``."""
    if isinstance(storage, AdvancedSnapshotStorage):
        own = f"{path}.{unique}"
        try:
            storage.write(own, BytesIO(content))
            storage.atomic_move(own, path)
        except Exception:
            # The first error is the one to report.
            with contextlib.suppress(Exception):
                storage.delete(own)
            raise
        return
    if storage.exists(path):
        raise SnapshotExistsError(f"{path} exists already in {label(storage)}.")
    storage.write(path, BytesIO(content))


def patiently(storage: SnapshotStorage, read: Callable[[], Read]) -> Read:
    """*read*, again for a moment if it finds damage in a storage of the basic tier: that may show what another process
    is writing just now."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return read()
        except SnapshotIntegrityError:
            if isinstance(storage, AdvancedSnapshotStorage) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def proved(storage: SnapshotStorage, path: str, record: ArtifactRecord) -> Iterator[bytes]:
    """The object at *path* in chunks; its end proves that it is what *record* says.

    Raises ``SnapshotIntegrityError``, also if it is missing.
    """
    tally = stored_tally()
    try:
        yield from tally(read_chunks(storage, path))
    except SnapshotNotFoundError as error:
        raise SnapshotIntegrityError(
            f"{record.filename} is not in {label(storage)} as this process sees it. Do all workers use the "
            "same storage? A directory must be shared between hosts."
        ) from error
    if (tally.size, tally.digest) != (record.size, record.checksum):
        raise SnapshotIntegrityError(f"{path} is not what was written for this snapshot.")


def require_size(storage: SnapshotStorage, path: str, record: ArtifactRecord) -> None:
    """Raise ``SnapshotIntegrityError`` unless as many bytes are at *path* as were written for *record*."""
    if (size := size_of(storage, path)) != record.size:
        raise SnapshotIntegrityError(f"{path} has {size} bytes, but {record.size} were written. Nothing was published.")
