"""The format "directory": ``<name>/manifest.json``, and beside it the artifacts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO

from django_snapshots.catalog.notes import note_path
from django_snapshots.catalog.objects import create, label, patiently, proved, require_size, size_of, small
from django_snapshots.catalog.records import StoredArtifact, path_of
from django_snapshots.exceptions import (
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotStorageError,
)
from django_snapshots.manifest import MANIFEST_FILENAME, MAX_MANIFEST_SIZE, NOTE_KINDS, ArtifactRecord, Snapshot
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage
from django_snapshots.storage.streams import read_chunks

TOMBSTONE_FILENAME = "tombstone.json"


class DirectoryFormat:
    """Snapshots that are directories of a storage of any tier."""

    def __init__(self, storage: SnapshotStorage) -> None:
        self.storage = storage

    def exists(self, name: str) -> bool:
        """Whether a manifest is there, readable or not."""
        return self.storage.exists(_manifest(name))

    def is_half_deleted(self, name: str) -> bool:
        """Whether a delete of it has begun and not ended."""
        return self.storage.exists(_tombstone(name))

    def read(self, name: str) -> Snapshot:
        """What the manifest says.

        Raises ``SnapshotNotFoundError``, ``SnapshotIntegrityError`` or ``SnapshotVersionError``.
        """
        path = _manifest(name)
        snapshot = Snapshot.from_bytes(small(self.storage, path, MAX_MANIFEST_SIZE), path)
        if snapshot.name != name:
            raise SnapshotIntegrityError(
                f"{path} says that it belongs to a snapshot {snapshot.name!r}: it was moved or copied by hand."
            )
        return snapshot

    def is_mine(self, name: str, run: str) -> bool:
        """Whether the manifest is there and of *run*; raises ``SnapshotError`` if that can't be told."""
        try:
            return patiently(self.storage, lambda: self.read(name)).run == run
        except SnapshotNotFoundError:
            return False

    def named_by(self, name: str, run: str) -> frozenset[str]:
        """The files that the manifest names if it is there and of *run*; raises ``SnapshotError`` if that can't be
        told."""
        try:
            snapshot = patiently(self.storage, lambda: self.read(name))
        except SnapshotNotFoundError:
            return frozenset()
        return frozenset(record.filename for record in snapshot.artifacts) if snapshot.run == run else frozenset()

    def named(self, name: str) -> frozenset[str]:
        """The files that a manifest or a tombstone names, whoever's it is; raises ``SnapshotError`` if one can't be
        read."""
        files: set[str] = set()
        for read in (self.read, self.buried):
            with contextlib.suppress(SnapshotNotFoundError):
                files.update(record.filename for record in read(name).artifacts)
        return frozenset(files)

    def buried(self, name: str) -> Snapshot:
        """What the tombstone says; raises as :meth:`read` does."""
        return self._buried(name, _tombstone(name))

    def unwrite(self, name: str) -> None:
        """Remove the manifest alone."""
        self.storage.delete(_manifest(name))

    def reader(self, snapshot: Snapshot) -> DirectoryReader:
        """The artifacts beside its manifest."""
        return DirectoryReader(self.storage, snapshot)

    # Publishing

    def publish(
        self,
        snapshot: Snapshot,
        stored: Sequence[StoredArtifact],
        *,
        published: Callable[[Snapshot], Snapshot | None],
        rival: Callable[[str], bool],
        gate: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
        retreat: Callable[[Exception], bool] = lambda _error: True,
    ) -> Snapshot:
        """Give every object its plain name, and write the manifest last.

        *published* reads back what is there of this run in this format or raises ``SnapshotExistsError``; *rival* says
        whether the name exists in the other format. *retreat* says whether what was moved may be moved back.
        """
        records: list[ArtifactRecord] = []
        gate()
        try:
            for artifact in stored:
                check()
                records.append(self._settle(snapshot, artifact))
            check()
            found = self._commit(replace(snapshot, artifacts=tuple(records)), published)
            if rival(snapshot.name):
                self.storage.delete(_manifest(snapshot.name))
                raise SnapshotExistsError(
                    f"A snapshot {snapshot.name!r} was published as an archive in {label(self.storage)} at the same "
                    "moment; choose another name."
                )
        except Exception as error:
            if retreat(error):
                self._unsettle(snapshot, stored, records)
            raise
        return found

    def _commit(self, snapshot: Snapshot, published: Callable[[Snapshot], Snapshot | None]) -> Snapshot:
        path = _manifest(snapshot.name)
        taken: SnapshotExistsError | None = None
        try:
            create(self.storage, path, snapshot.to_bytes(), unique=snapshot.run)
        except SnapshotExistsError as error:
            # It is ours, from an earlier attempt, or somebody else's: reading it back tells.
            taken = error
        found = published(snapshot)
        if found is None and taken is not None:
            raise SnapshotExistsError(
                f"Another run was publishing a snapshot {snapshot.name!r} in {label(self.storage)} at the same moment; "
                "choose another name."
            ) from taken
        if found is None:
            raise SnapshotStorageError(f"{label(self.storage)} does not give back {path}, which was just written.")
        return found

    def _unsettle(
        self, snapshot: Snapshot, stored: Sequence[StoredArtifact], records: Sequence[ArtifactRecord]
    ) -> None:
        """Give back the plain names that were taken, unless the manifest is there after all."""
        # The first error is the one to report, whatever goes wrong here.
        with contextlib.suppress(Exception):
            if not isinstance(self.storage, AdvancedSnapshotStorage) or self.is_mine(snapshot.name, snapshot.run):
                return
            for artifact, record in zip(stored, records, strict=False):
                if record.filename != artifact.record.filename:
                    self._move_back(self.storage, snapshot, artifact)
            if len(records) < len(stored):
                self._unsettle_perhaps(self.storage, snapshot, stored[len(records)])

    def _unsettle_perhaps(self, storage: AdvancedSnapshotStorage, snapshot: Snapshot, artifact: StoredArtifact) -> None:
        """A rename that took place may be reported as failed: where it could not be made to last."""
        attempt = path_of(snapshot.name, artifact.record.filename)
        plain = path_of(snapshot.name, artifact.plain_filename)
        if not storage.exists(attempt):
            for _ in proved(storage, plain, artifact.record):
                pass
            self._move_back(storage, snapshot, artifact)

    def _move_back(self, storage: AdvancedSnapshotStorage, snapshot: Snapshot, artifact: StoredArtifact) -> None:
        plain = path_of(snapshot.name, artifact.plain_filename)
        try:
            storage.atomic_move(plain, path_of(snapshot.name, artifact.record.filename))
        except Exception:  # noqa: BLE001 - a storage that is full or broken may still let go
            # Under its plain name nobody could tell later whose it is.
            storage.delete(plain)

    def _settle(self, snapshot: Snapshot, artifact: StoredArtifact) -> ArtifactRecord:
        """Bring one object under its final name; return its record with that name."""
        record = artifact.record
        attempt = path_of(snapshot.name, record.filename)
        plain = path_of(snapshot.name, artifact.plain_filename)
        renamed = replace(record, filename=artifact.plain_filename)
        if not self.storage.exists(attempt):
            # An earlier finisher of this run may have moved it; nothing but its digest can prove that.
            for _ in proved(self.storage, plain, record):
                pass
            return renamed
        require_size(self.storage, attempt, record)
        if not isinstance(self.storage, AdvancedSnapshotStorage) or getattr(self.storage, "move_is_copy", False):
            return record
        try:
            self.storage.atomic_move(attempt, plain)
        except SnapshotExistsError:
            # Left behind by a run that died before its manifest. The attempt's own name serves as well.
            return record
        return renamed

    # Deleting

    def delete(self, name: str) -> None:
        """Delete the manifest, then what it names; or go on with a delete that was interrupted."""
        tombstone = _tombstone(name)
        if self.exists(name):
            snapshot = self.read(name)
            self._bury(_manifest(name), tombstone, snapshot)
        else:
            snapshot = self._buried(name, tombstone)
        artifacts = (path_of(name, artifact.filename) for artifact in snapshot.artifacts)
        for path in (*artifacts, *(note_path(name, kind) for kind in NOTE_KINDS), tombstone):
            if not self._lies_buried(tombstone, snapshot):
                # Another delete has ended, and the name may be a new snapshot's by now.
                return
            self.storage.delete(path)

    def _lies_buried(self, tombstone: str, snapshot: Snapshot) -> bool:
        try:
            content = small(self.storage, tombstone, MAX_MANIFEST_SIZE)
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
        snapshot = Snapshot.from_bytes(small(self.storage, tombstone, MAX_MANIFEST_SIZE), tombstone)
        if snapshot.name != name:
            raise SnapshotIntegrityError(f"{tombstone} is of another snapshot, {snapshot.name!r}; nothing was deleted.")
        return snapshot


class DirectoryReader:
    """The artifacts of one snapshot, each an object of its own."""

    def __init__(self, storage: SnapshotStorage, snapshot: Snapshot) -> None:
        self._storage = storage
        self._snapshot = snapshot

    def size_of(self, record: ArtifactRecord) -> int:
        """Bytes of its object."""
        return size_of(self._storage, path_of(self._snapshot.name, record.filename))

    def open(self, record: ArtifactRecord) -> Iterator[bytes]:
        """Its object in chunks."""
        return read_chunks(self._storage, path_of(self._snapshot.name, record.filename))

    def check_end(self) -> None:
        """What else lies in a directory is no part of the snapshot."""

    def close(self) -> None:
        """Nothing is open between two objects."""


def _manifest(name: str) -> str:
    return f"{name}/{MANIFEST_FILENAME}"


def _tombstone(name: str) -> str:
    return f"{name}/{TOMBSTONE_FILENAME}"
