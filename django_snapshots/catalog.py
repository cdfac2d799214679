"""Find, list, publish and delete snapshots in a storage; the only code that knows its paths.

Who can die when, and what then holds:

- A writer dies: its attempt's object has a name that nobody else writes and that no manifest names.
- The finisher dies before the manifest: nothing is listed. A second finisher of the same run finds each object under
  its attempt's name or, proved by its digest, under its plain name, and goes on.
- The finisher dies after the manifest: the snapshot is listed and whole; a second one finds its own run in it.
- Two runs race for a name: one manifest is there, and the other run sees a run that isn't its own.
- The finisher fails and can't say whether the manifest is there: no object that it may name is removed.
- A deleter dies: the manifest is gone first, so nothing half deleted is listed; the tombstone names what is left, and
  keeps the name taken until a second delete has ended, so that it can't remove what a new snapshot has put there.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, TypeVar

from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotError,
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotStorageError,
    SnapshotVersionError,
)
from django_snapshots.manifest import (
    MANIFEST_FILENAME,
    MAX_MANIFEST_SIZE,
    ArtifactRecord,
    Snapshot,
    check_name,
    is_safe_filename,
    to_iso,
)
from django_snapshots.pipeline.digest import stored_tally
from django_snapshots.pipeline.stream import closing_chunks
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage
from django_snapshots.storage.streams import read_chunks

Read = TypeVar("Read")

MARKER = ".django-snapshots.json"
TOMBSTONE_FILENAME = "tombstone.json"
_MAX_MARKER_SIZE = 64 * 1024
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What lies in a storage under a snapshot's name."""

    name: str
    snapshot: Snapshot | None = None
    error: SnapshotError | None = None
    """Why the manifest can't be read; such an entry is shown and never touched."""


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """An artifact that an attempt has stored, on its way into a manifest."""

    record: ArtifactRecord
    """Under the attempt's file name."""
    plain_filename: str
    """The name that it should have once it is published."""


class Catalog:
    """The snapshots in one storage."""

    def __init__(self, storage: SnapshotStorage) -> None:
        self.storage = storage

    # Reading

    def entries(self) -> list[Entry]:
        """Everything that has a manifest, the newest first, unreadable ones before all."""
        found = [self._entry(name) for name in self.storage.list("") if _may_be_name(name)]
        entries = [entry for entry in found if entry is not None]
        return sorted(entries, key=_newest_first, reverse=True)

    def get(self, name: str) -> Snapshot:
        """The snapshot called *name*.

        Raises ``SnapshotNotFoundError``, ``SnapshotIntegrityError`` or ``SnapshotVersionError``.
        """
        path = f"{check_name(name)}/{MANIFEST_FILENAME}"
        try:
            content = self._small_object(path, MAX_MANIFEST_SIZE)
        except SnapshotNotFoundError as error:
            raise SnapshotNotFoundError(f"There is no snapshot {name!r} in {label(self.storage)}.") from error
        snapshot = Snapshot.from_bytes(content, path)
        if snapshot.name != name:
            raise SnapshotIntegrityError(
                f"{path} says that it belongs to a snapshot {snapshot.name!r}: it was moved or copied by hand."
            )
        return snapshot

    def latest(self) -> Snapshot:
        """The newest snapshot.

        Raises ``SnapshotNotFoundError``, or ``SnapshotIntegrityError`` if one that can't be read may be newer: to take
        an older one for it in silence would restore the wrong state.
        """
        entries = self.entries()
        if unreadable := [str(entry.error) for entry in entries if entry.snapshot is None]:
            raise SnapshotIntegrityError(
                f"Which snapshot in {label(self.storage)} is the latest can't be told, name the one that you mean: "
                f"{' '.join(unreadable)}"
            )
        snapshots = [entry.snapshot for entry in entries if entry.snapshot is not None]
        if not snapshots:
            raise SnapshotNotFoundError(f"There is no snapshot in {label(self.storage)}.")
        return max(snapshots, key=lambda snapshot: snapshot.created_at)

    def exists(self, name: str) -> bool:
        """Whether the name is taken: by a manifest, readable or not, or by a delete that has not ended."""
        return self.storage.exists(f"{check_name(name)}/{MANIFEST_FILENAME}") or self._is_half_deleted(name)

    def _is_half_deleted(self, name: str) -> bool:
        return self.storage.exists(f"{name}/{TOMBSTONE_FILENAME}")

    def path(self, name: str, filename: str) -> str:
        """Where an artifact's file lies."""
        if not is_safe_filename(filename):
            raise SnapshotIntegrityError(f"{filename!r} can't be the name of an artifact's file.")
        return f"{check_name(name)}/{filename}"

    def size(self, path: str) -> int:
        """Bytes of the object at *path*; raises ``SnapshotNotFoundError``."""
        with self.storage.read(path) as file:
            size = getattr(file, "size", None)
            if isinstance(size, int):
                return size
            if file.seekable():
                return file.seek(0, 2)
        return sum(len(chunk) for chunk in read_chunks(self.storage, path))

    # Identity

    def storage_id(self, *, expected: str | None = None, create: bool = True) -> str:
        """Who this storage is: an id that was made once and lies in it.

        *expected* is the id that it had before, if that is known: a storage that has lost it is not the same storage
        (a disk that isn't mounted, another bucket), and is refused with ``SnapshotStorageError``. A storage without
        one gets one, unless *create* is false; then the id is empty.
        """
        found = self._read_marker()
        if expected and found != expected:
            raise SnapshotStorageError(
                f"{label(self.storage)} is not the storage that it was: its {MARKER} "
                f"{'is missing' if found is None else 'has another id'}. Is a disk not mounted, a bucket changed? "
                "If the storage was replaced on purpose, give it another location or put the old file back."
            )
        if found is None and create:
            found = self._write_marker()
        return found or ""

    def _read_marker(self) -> str | None:
        try:
            return self._patiently(lambda: _marker_id(self._small_object(MARKER, _MAX_MARKER_SIZE)))
        except SnapshotNotFoundError:
            return None
        except SnapshotIntegrityError as error:
            raise SnapshotStorageError(
                f"{MARKER} in {label(self.storage)} can't be read; it says whose storage this is. "
                "Put its original back, or choose another location."
            ) from error

    def _write_marker(self) -> str:
        made = {"id": str(uuid.uuid4()), "created_at": to_iso(datetime.now(UTC))}
        # Another process may have made one at this moment; whichever is there then is the storage's.
        with contextlib.suppress(SnapshotExistsError):
            self._create(MARKER, json.dumps(made, indent=2).encode() + b"\n", unique=made["id"])
        found = self._read_marker()
        if found is None:
            raise SnapshotStorageError(f"{label(self.storage)} does not give back what was just written to {MARKER}.")
        return found

    # Publishing

    def publish(self, snapshot: Snapshot, stored: Sequence[StoredArtifact]) -> Snapshot:
        """Make *snapshot* exist: every object looked at, given its plain name, and the manifest written last.

        May be called again after a death at any line; gives the same result. Raises ``SnapshotExistsError`` if the
        name belongs to another run, ``SnapshotIntegrityError`` if an object is not there as it was written.
        """
        existing = self._published(snapshot)
        if existing is not None:
            return existing
        if self._is_half_deleted(snapshot.name):
            raise SnapshotExistsError(
                f"An earlier snapshot {snapshot.name!r} in {label(self.storage)} is being deleted, or its delete was "
                "interrupted: delete it again, or choose another name."
            )
        records: list[ArtifactRecord] = []
        try:
            for artifact in stored:
                records.append(self._settle(snapshot, artifact))
            return self._commit(replace(snapshot, artifacts=tuple(records)))
        except Exception:
            self._unsettle(snapshot, stored[: len(records)], records)
            raise

    def _commit(self, snapshot: Snapshot) -> Snapshot:
        path = f"{snapshot.name}/{MANIFEST_FILENAME}"
        # If it exists it is ours, from an earlier attempt, or somebody else's: reading it back tells.
        with contextlib.suppress(SnapshotExistsError):
            self._create(path, snapshot.to_bytes(), unique=snapshot.run)
        published = self._published(snapshot)
        if published is None:
            raise SnapshotStorageError(f"{label(self.storage)} does not give back {path}, which was just written.")
        return published

    def _unsettle(
        self, snapshot: Snapshot, stored: Sequence[StoredArtifact], records: Sequence[ArtifactRecord]
    ) -> None:
        """Give back the plain names that were taken, unless the manifest is there after all."""
        # The first error is the one to report, whatever goes wrong here.
        with contextlib.suppress(Exception):
            if not isinstance(self.storage, AdvancedSnapshotStorage) or self._is_mine(snapshot.name, snapshot.run):
                return
            for artifact, record in zip(stored, records, strict=True):
                if record.filename != artifact.record.filename:
                    plain = self.path(snapshot.name, record.filename)
                    self.storage.atomic_move(plain, self.path(snapshot.name, artifact.record.filename))

    def _is_mine(self, name: str, run: str) -> bool:
        try:
            return self._patiently(lambda: self.get(name)).run == run
        except SnapshotNotFoundError:
            return False

    def _published(self, snapshot: Snapshot) -> Snapshot | None:
        try:
            found = self._patiently(lambda: self.get(snapshot.name))
        except SnapshotNotFoundError:
            return None
        except (SnapshotIntegrityError, SnapshotVersionError) as error:
            raise SnapshotExistsError(
                f"The name {snapshot.name!r} is taken in {label(self.storage)} by a snapshot that can't be read; "
                f"choose another name. {error}"
            ) from error
        if found.run != snapshot.run:
            raise SnapshotExistsError(
                f"A snapshot {snapshot.name!r} exists already in {label(self.storage)}; choose another name or "
                "delete it first. Nothing of it was changed."
            )
        return found

    def _settle(self, snapshot: Snapshot, artifact: StoredArtifact) -> ArtifactRecord:
        """Bring one object under its final name; return its record with that name."""
        record = artifact.record
        attempt = self.path(snapshot.name, record.filename)
        plain = self.path(snapshot.name, artifact.plain_filename)
        renamed = replace(record, filename=artifact.plain_filename)
        if not self.storage.exists(attempt):
            # An earlier finisher of this run may have moved it; nothing but its digest can prove that.
            self._prove(plain, record)
            return renamed
        if (size := self.size(attempt)) != record.size:
            raise SnapshotIntegrityError(
                f"{attempt} has {size} bytes, but {record.size} were written. Nothing was published."
            )
        if not isinstance(self.storage, AdvancedSnapshotStorage) or getattr(self.storage, "move_is_copy", False):
            return record
        try:
            self.storage.atomic_move(attempt, plain)
        except SnapshotExistsError:
            # Left behind by a run that died before its manifest. The attempt's own name serves as well.
            return record
        except Exception:
            # A rename that took place may be reported as failed: where it could not be made to last.
            with contextlib.suppress(Exception):
                if not self.storage.exists(attempt):
                    self.storage.atomic_move(plain, attempt)
            raise
        return renamed

    def _prove(self, path: str, record: ArtifactRecord) -> None:
        tally = stored_tally()
        try:
            for _ in tally(read_chunks(self.storage, path)):
                pass
        except SnapshotNotFoundError as error:
            raise SnapshotIntegrityError(
                f"{record.filename} is not in {label(self.storage)} as this process sees it. Do all workers use the "
                "same storage? A directory must be shared between hosts."
            ) from error
        if (tally.size, tally.digest) != (record.size, record.checksum):
            raise SnapshotIntegrityError(f"{path} is not what was written for this snapshot.")

    # Deleting

    def delete(self, name: str) -> None:
        """Delete the snapshot called *name*: its manifest first, then what the manifest names, nothing else.

        A snapshot whose manifest can't be read or understood is not touched.
        """
        manifest, tombstone = f"{check_name(name)}/{MANIFEST_FILENAME}", f"{name}/{TOMBSTONE_FILENAME}"
        if self.storage.exists(manifest):
            snapshot = self.get(name)
            self._bury(manifest, tombstone, snapshot)
        else:
            snapshot = self._buried(name, tombstone)
        for path in (*(self.path(name, artifact.filename) for artifact in snapshot.artifacts), tombstone):
            if not self._lies_buried(tombstone, snapshot):
                # Another delete has ended, and the name may be a new snapshot's by now.
                return
            self.storage.delete(path)

    def _lies_buried(self, tombstone: str, snapshot: Snapshot) -> bool:
        try:
            content = self._small_object(tombstone, MAX_MANIFEST_SIZE)
        except SnapshotNotFoundError:
            return False
        return Snapshot.from_bytes(content, tombstone).run == snapshot.run

    def _bury(self, manifest: str, tombstone: str, snapshot: Snapshot) -> None:
        if isinstance(self.storage, AdvancedSnapshotStorage):
            with contextlib.suppress(SnapshotNotFoundError):
                self._move_manifest(self.storage, manifest, tombstone)
            return
        # One that lies there already was written by a delete that died before the manifest was gone.
        self.storage.delete(tombstone)
        self.storage.write(tombstone, BytesIO(snapshot.to_bytes()))
        self.storage.delete(manifest)

    def _move_manifest(self, storage: AdvancedSnapshotStorage, manifest: str, tombstone: str) -> None:
        """Raises ``SnapshotNotFoundError`` if another delete was faster; its tombstone is never taken away."""
        try:
            storage.atomic_move(manifest, tombstone)
        except SnapshotExistsError:
            if storage.exists(manifest):
                # Written by a delete that died before the manifest was gone.
                storage.delete(tombstone)
                storage.atomic_move(manifest, tombstone)

    def _buried(self, name: str, tombstone: str) -> Snapshot:
        try:
            snapshot = Snapshot.from_bytes(self._small_object(tombstone, MAX_MANIFEST_SIZE), tombstone)
        except SnapshotNotFoundError as error:
            raise SnapshotNotFoundError(f"There is no snapshot {name!r} in {label(self.storage)}.") from error
        if snapshot.name != name:
            raise SnapshotIntegrityError(f"{tombstone} is of another snapshot, {snapshot.name!r}; nothing was deleted.")
        return snapshot

    def withdraw(self, name: str, run: str, filenames: Sequence[str]) -> None:
        """Remove the objects of attempts of *run* that will not be published.

        A manifest of this run may be there all the same, if its last write was reported as failed and was not: then
        the snapshot exists, whole, and nothing is removed. Raises ``SnapshotError`` if that can't be told.
        """
        if self._is_mine(name, run):
            return
        for filename in filenames:
            self.storage.delete(self.path(name, filename))

    # Objects

    def _entry(self, name: str) -> Entry | None:
        try:
            return Entry(name=name, snapshot=self.get(name))
        except SnapshotNotFoundError:
            return None
        except SnapshotError as error:
            return Entry(name=name, error=error)

    def _patiently(self, read: Callable[[], Read]) -> Read:
        """*read*, again for a moment if it finds damage in a storage of the basic tier: that may show what another
        process is writing just now."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return read()
            except SnapshotIntegrityError:
                if isinstance(self.storage, AdvancedSnapshotStorage) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def _small_object(self, path: str, most: int) -> bytes:
        content = b""
        with closing_chunks(read_chunks(self.storage, path)) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) > most:
                    break
        return content

    def _create(self, path: str, content: bytes, *, unique: str) -> None:
        """Write *path* unless it exists, exclusively where the storage has a way to."""
        if isinstance(self.storage, AdvancedSnapshotStorage):
            own = f"{path}.{unique}"
            try:
                self.storage.write(own, BytesIO(content))
                self.storage.atomic_move(own, path)
            except Exception:
                # The first error is the one to report.
                with contextlib.suppress(Exception):
                    self.storage.delete(own)
                raise
            return
        if self.storage.exists(path):
            raise SnapshotExistsError(f"{path} exists already in {label(self.storage)}.")
        self.storage.write(path, BytesIO(content))


def list_snapshots(storage: SnapshotStorage | None = None) -> list[Entry]:
    """Everything in *storage*, or in ``SNAPSHOTS["STORAGE"]``, that has a manifest, the newest first.

    Entries whose manifest can't be read have an ``error`` instead of a ``snapshot``.
    """
    return Catalog(storage or get_settings().storage).entries()


def label(storage: SnapshotStorage) -> str:
    """What and where a storage is, for people."""
    return str(getattr(storage, "label", "") or type(storage).__name__)


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """A finished snapshot as a task's result: plain JSON."""
    return {
        "name": snapshot.name,
        "run": snapshot.run,
        "created_at": to_iso(snapshot.created_at),
        "size": snapshot.size,
        "artifacts": [artifact.to_json() for artifact in snapshot.artifacts],
    }


def _marker_id(content: bytes) -> str:
    try:
        return str(uuid.UUID(json.loads(content)["id"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotIntegrityError(f"{MARKER} is damaged.") from error


def _may_be_name(name: str) -> bool:
    try:
        check_name(name)
    except SnapshotError:
        return False
    return True


def _newest_first(entry: Entry) -> tuple[bool, datetime, str]:
    if entry.snapshot is None:
        return (True, datetime.max.replace(tzinfo=UTC), entry.name)
    return (False, entry.snapshot.created_at, entry.name)
