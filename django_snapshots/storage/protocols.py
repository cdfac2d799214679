"""The two tiers of storage, as promises that a test can hold a backend to (see ``django_snapshots.testing``).

Paths are relative to the storage's root, separated by ``/``, never empty, and never contain ``.`` or ``..`` as a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Protocol, runtime_checkable

from django_snapshots.exceptions import SnapshotStorageCapabilityError


@runtime_checkable
class SnapshotStorage(Protocol):
    """The basic tier: the least that snapshots can be kept in.

    It promises no more than what it wraps does; the engine leans on unique names and on a manifest with a digest.
    """

    def read(self, path: str) -> IO[bytes]:
        """Open the object at *path*; the caller closes it. A missing one raises ``SnapshotNotFoundError``."""

    def write(self, path: str, content: IO[bytes]) -> None:
        """Store all of *content* at *path*. When this returns, ``read`` gives these bytes back; when it raises, the
        object is not complete under that name."""

    def list(self, prefix: str) -> list[str]:
        """The immediate children of *prefix*, sorted: names, objects and "directories" alike, without slashes.
        ``""`` is the root. Path-wise: ``app`` never matches ``app2``. A missing prefix is empty, one that can't be
        read is an error."""

    def delete(self, path: str) -> None:
        """Remove the object at *path*; a missing one is not an error."""

    def exists(self, path: str) -> bool:
        """Whether an object (not a directory) is at *path*; an answer that can't be had is an error, not ``False``."""


@runtime_checkable
class AdvancedSnapshotStorage(SnapshotStorage, Protocol):
    """The advanced tier: streams, atomic names, deep walks and mirrors.

    No reader ever sees a partly written object under its final name, and memory is bounded by a chunk, whatever the
    object's size.
    """

    def stream_read(self, path: str) -> Iterator[bytes]:
        """The object's bytes in chunks. A missing one raises ``SnapshotNotFoundError`` at the latest at the first."""

    def stream_write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Store all *chunks* at *path*, replacing atomically. If *chunks* raises, so does this, and *path* is as it
        was."""

    def atomic_move(self, src: str, dst: str) -> None:
        """Rename without a copy. An existing *dst* raises ``SnapshotExistsError`` and changes nothing, also when two
        race for it; a missing *src* raises ``SnapshotNotFoundError``."""

    def recursive_list(self, prefix: str) -> list[str]:
        """Every object below *prefix* (or at it), sorted, each as its whole path from the root."""

    def sync(self, src_prefix: str, dst_prefix: str) -> None:
        """Mirror: afterwards *dst_prefix* holds exactly the objects of *src_prefix*. An empty source is refused unless
        the backend is told otherwise, and a destination that the backend does not have is an error."""


def requires_advanced_storage(storage: object, operation: str) -> None:
    """Raise :class:`SnapshotStorageCapabilityError` unless *storage* is of the advanced tier.

    *operation* names what needs it, for the message.
    """
    if isinstance(storage, AdvancedSnapshotStorage):
        return
    raise SnapshotStorageCapabilityError(
        f"{operation} needs a storage of the advanced tier (AdvancedSnapshotStorage); "
        f"{type(storage).__name__} is of the basic tier. Use LocalFileSystemBackend or another advanced backend."
    )
