"""The catalog itself: what both formats have in common, and which one a snapshot is of."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from django_snapshots.catalog import notes, pins
from django_snapshots.catalog.archive import ATTEMPT, SUFFIX, ArchiveFormat
from django_snapshots.catalog.directory import DirectoryFormat
from django_snapshots.catalog.identity import storage_id
from django_snapshots.catalog.notes import Note, Notes
from django_snapshots.catalog.objects import label, patiently
from django_snapshots.catalog.pins import PIN, Pin
from django_snapshots.catalog.records import (
    Entry,
    Leftover,
    Reader,
    StoredArtifact,
    may_be_name,
    newest_first,
    path_of,
)
from django_snapshots.exceptions import (
    SnapshotError,
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPinnedError,
    SnapshotVersionError,
)
from django_snapshots.manifest import MANIFEST_FILENAME, ArtifactRecord, Snapshot, check_name, is_safe_filename
from django_snapshots.pipeline.stream import closing_chunks
from django_snapshots.storage.protocols import SnapshotStorage

Format = DirectoryFormat | ArchiveFormat

_RUN = "[0-9a-f]{32}"
_ATTEMPT_NAME = re.compile(
    rf".+\.(?P<run>{_RUN})-[0-9]+-[0-9]+\..+"
    rf"|{re.escape(ATTEMPT)}\.(?P<assembled>{_RUN})-[0-9a-f]{{16}}"
    rf"|{re.escape(MANIFEST_FILENAME)}\.(?P<manifest>{_RUN})"
)
"""What an attempt calls its object (``plan.attempt_filename``), an archive or a manifest that is not published yet."""


class Catalog:
    """The snapshots in one storage, of both formats."""

    def __init__(self, storage: SnapshotStorage) -> None:
        self.storage = storage
        self._directory = DirectoryFormat(storage)
        self._archive = ArchiveFormat(storage)

    # Reading

    def entries(self) -> list[Entry]:
        """Everything that has a manifest, the newest first, unreadable ones before all."""
        listed = set(self.storage.list(""))
        archives = {item.removesuffix(SUFFIX) for item in listed if item.endswith(SUFFIX)}
        names = [name for name in sorted(listed | archives) if may_be_name(name)]
        found = [self._entry(name, directory=name in listed, archive=name in archives) for name in names]
        return sorted((entry for entry in found if entry is not None), key=newest_first, reverse=True)

    def get(self, name: str) -> Snapshot:
        """The snapshot called *name*.

        Raises ``SnapshotNotFoundError``, ``SnapshotIntegrityError`` or ``SnapshotVersionError``.
        """
        return self._read(check_name(name), directory=True, archive=True)

    def latest(self) -> Snapshot:
        """The newest snapshot that is no safety copy.

        Raises ``SnapshotNotFoundError``, or ``SnapshotIntegrityError`` if one that can't be read may be newer: to take
        an older one for it in silence would restore the wrong state.
        """
        entries = self.entries()
        if unreadable := [str(entry.error) for entry in entries if entry.snapshot is None]:
            raise SnapshotIntegrityError(
                f"Which snapshot in {label(self.storage)} is the latest can't be told, name the one that you mean: "
                f"{' '.join(unreadable)}"
            )
        snapshots = [entry.snapshot for entry in entries if entry.snapshot is not None and not entry.snapshot.safety]
        if not snapshots:
            raise SnapshotNotFoundError(f"There is no snapshot in {label(self.storage)}.")
        return max(snapshots, key=lambda snapshot: snapshot.created_at)

    def exists(self, name: str) -> bool:
        """Whether the name is taken: by a manifest or an archive, readable or not, or by a delete that has not
        ended."""
        check_name(name)
        return self._directory.exists(name) or self._directory.is_half_deleted(name) or self._archive.exists(name)

    def _entry(self, name: str, *, directory: bool, archive: bool) -> Entry | None:
        try:
            return Entry(name=name, snapshot=self._read(name, directory=directory, archive=archive))
        except SnapshotNotFoundError:
            return None
        except SnapshotError as error:
            return Entry(name=name, error=error)

    def _read(self, name: str, *, directory: bool, archive: bool) -> Snapshot:
        """The snapshot, looked for in the formats that it may be of."""
        if directory:
            with contextlib.suppress(SnapshotNotFoundError):
                snapshot = self._directory.read(name)
                if archive and self._archive.exists(name):
                    raise SnapshotIntegrityError(
                        f"{name!r} lies in {label(self.storage)} twice, as {name}/ and as {name}{SUFFIX}; "
                        "look at both, and move one of them away."
                    )
                return snapshot
        if archive:
            with contextlib.suppress(SnapshotNotFoundError):
                return self._archive.read(name)
        raise SnapshotNotFoundError(f"There is no snapshot {name!r} in {label(self.storage)}.")

    # Artifacts

    @contextlib.contextmanager
    def reader(self, snapshot: Snapshot) -> Iterator[Reader]:
        """The stored artifacts of *snapshot*, open for one pass; see :class:`Reader`."""
        found: Format = self._archive if self._archive.exists(snapshot.name) else self._directory
        with contextlib.closing(found.reader(snapshot)) as reader:
            yield reader

    def open(self, snapshot: Snapshot, record: ArtifactRecord) -> Iterator[bytes]:
        """The stored bytes of one artifact in chunks; close the iterator if you stop early.

        Nothing is opened before the first. Raises ``SnapshotNotFoundError`` or ``SnapshotIntegrityError``; whether
        they are right only the manifest's digest can say.
        """
        with self.reader(snapshot) as reader, closing_chunks(reader.open(record)) as chunks:
            yield from chunks

    def size_of(self, snapshot: Snapshot, record: ArtifactRecord) -> int:
        """Bytes that are stored of one artifact; raises as :meth:`open` does."""
        with self.reader(snapshot) as reader:
            return reader.size_of(record)

    def path(self, name: str, filename: str) -> str:
        """Where an attempt stores its object, whatever the format."""
        return path_of(name, filename)

    # Notes

    def notes(self, snapshot: Snapshot) -> Notes:
        """What is noted beside *snapshot*; asks the storage once where there is nothing."""
        return notes.read_notes(self.storage, snapshot.name, snapshot.run)

    def note(self, snapshot: Snapshot, kind: str) -> Note | None:
        """One of them, or ``None``. Raises ``SnapshotError`` if that can't be read, or can't be told."""
        return notes.read_note(self.storage, snapshot.name, snapshot.run, kind)

    def write_note(self, snapshot: Snapshot, kind: str, content: Mapping[str, Any]) -> Note:
        """Note *content*, plain JSON, beside *snapshot*, in the place of what was noted there of this kind.

        Raises ``SnapshotNotFoundError`` if the snapshot is deleted at the same time; then nothing is left of the note.
        """
        note = notes.write_note(self.storage, snapshot, kind, content)
        with contextlib.suppress(SnapshotNotFoundError):
            if self.get(snapshot.name).run == snapshot.run:
                return note
        self.delete_note(snapshot, kind)
        raise SnapshotNotFoundError(f"The snapshot {snapshot.name!r} was deleted from {label(self.storage)} meanwhile.")

    def delete_note(self, snapshot: Snapshot, kind: str) -> None:
        """Remove it; nothing if there is none about this snapshot. Raises as :meth:`note` does."""
        if self.note(snapshot, kind) is not None:
            notes.delete_note(self.storage, snapshot.name, kind)

    def pin(self, snapshot: Snapshot) -> Pin | None:
        """Why *snapshot* stays, if it is pinned. One that can't be read is one. Raises what the storage raises."""
        try:
            return pins.made_of(self.note(snapshot, PIN))
        except (SnapshotIntegrityError, SnapshotVersionError) as error:
            return pins.unreadable_pin(error)

    def write_pin(self, snapshot: Snapshot, *, reason: str, by: str) -> Pin:
        """Pin *snapshot*; raises as :meth:`write_note` does."""
        return pins.made_of(self.write_note(snapshot, PIN, {"reason": reason, "by": by})) or Pin()

    def delete_pin(self, snapshot: Snapshot) -> None:
        """Take its pin away, also one that can't be read."""
        notes.delete_note(self.storage, snapshot.name, PIN)

    # Identity

    def storage_id(self, *, expected: str | None = None, create: bool = True) -> str:
        """Who this storage is: an id that was made once and lies in it.

        *expected* is the id that it had before, if that is known: a storage that has lost it is not the same storage
        (a disk that isn't mounted, another bucket), and is refused with ``SnapshotStorageError``. A storage without
        one gets one, unless *create* is false; then the id is empty.
        """
        return storage_id(self.storage, expected=expected, make=create)

    # Publishing

    def publish(
        self,
        snapshot: Snapshot,
        stored: Sequence[StoredArtifact],
        *,
        form: str = "directory",
        gate: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
        retreat: Callable[[Exception], bool] = lambda _error: True,
    ) -> Snapshot:
        """Make *snapshot* exist in the format *form*.

        *gate* is passed before anything takes a name of the snapshot's own: whoever has passed it goes on to the end.
        *check* is called at every piece of work, and last right before the manifest is written. Both may raise. When
        it fails, what was moved is moved back, unless *retreat* says that another finisher may be at it.

        May be called again after a death at any line; gives the same result. Raises ``SnapshotExistsError`` if the
        name belongs to another run, ``SnapshotIntegrityError`` if an object is not there as it was written, and
        ``SnapshotStorageCapabilityError`` for an archive in a storage of the basic tier.
        """
        found = self._published(snapshot)
        if found is None:
            if self._directory.is_half_deleted(snapshot.name):
                raise SnapshotExistsError(
                    f"An earlier snapshot {snapshot.name!r} in {label(self.storage)} is being deleted, or its delete "
                    "was interrupted: delete it again, or choose another name."
                )
            form_of, other = (self._archive, self._directory) if form == "archive" else (self._directory, self._archive)
            # One of the other format that comes and goes takes itself back, and is no reason to fail.
            found = form_of.publish(
                snapshot,
                stored,
                published=partial(self._of_its_run, form_of),
                rival=other.exists,
                gate=gate,
                check=check,
                retreat=retreat,
            )
        self._clear_copies(found, stored)
        return found

    def _clear_copies(self, snapshot: Snapshot, stored: Sequence[StoredArtifact]) -> None:
        """Remove what was copied into an archive. It exists and is whole, whatever can't be removed now."""
        with contextlib.suppress(Exception):
            # The manifest of a directory may name these very objects, and an archive of another run lie beside it.
            if self._archive.exists(snapshot.name) and not self._directory.is_mine(snapshot.name, snapshot.run):
                self._archive.clear(snapshot.name, snapshot.run, [item.record.filename for item in stored])

    def _published(self, snapshot: Snapshot) -> Snapshot | None:
        """What is there of the same run under its name; raises ``SnapshotExistsError`` if the name is another's."""
        return self._of_its_run(self._directory, snapshot) or self._of_its_run(self._archive, snapshot)

    def _of_its_run(self, form: Format, snapshot: Snapshot) -> Snapshot | None:
        try:
            found = patiently(self.storage, lambda: form.read(snapshot.name))
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

    def withdraw(self, name: str, run: str, filenames: Sequence[str]) -> None:
        """Remove what attempts of *run* stored and no manifest names: *filenames*, and what else carries the run.

        A manifest of this run may be there all the same, if its last write was reported as failed and was not, or if
        this is about attempts that have lost: then what it names stays. Raises ``SnapshotError`` if that can't be told.
        """
        check_name(name)
        named = self._directory.named_by(name, run)
        mine = re.compile(rf".+\.{re.escape(run)}-[0-9]+-[0-9]+\..+")
        found = [child for child in self.storage.list(name) if mine.fullmatch(child)]
        self._archive.clear(name, run, [item for item in dict.fromkeys([*filenames, *found]) if item not in named])

    def take_back(self, name: str, run: str, *, unless_whole: bool) -> None:
        """Remove a manifest of *run* that was written too late; with *unless_whole* only if something that it names is
        missing: then the snapshot had been there, and was deleted."""
        snapshot = self.get(name)
        if snapshot.run != run or (unless_whole and self._is_whole(snapshot)):
            return
        self._archive.delete(name) if self._archive.exists(name) else self._directory.unwrite(name)

    def _is_whole(self, snapshot: Snapshot) -> bool:
        try:
            return all(self.size_of(snapshot, record) == record.size for record in snapshot.artifacts)
        except SnapshotNotFoundError:
            return False

    # What is left over

    def leftovers(self) -> Iterator[Leftover]:
        """Objects of attempts that no manifest names, with the run that each carries in its name.

        Nothing beside a manifest or tombstone that can't be read or understood, and nothing that this package did not
        name: whose it is only the journal can say.
        """
        for name in self.storage.list(""):
            if not may_be_name(name) or name.endswith(SUFFIX):
                continue
            try:
                named = self._directory.named(name)
                if self._archive.exists(name):
                    self._archive.read(name)
                children = self.storage.list(name)
            except SnapshotError:
                continue
            for child in children:
                match = _ATTEMPT_NAME.fullmatch(child)
                # An archive or a manifest that is not published yet has a name that no artifact may have.
                if match and child not in named and (not match["run"] or is_safe_filename(child)):
                    run = match["run"] or match["assembled"] or match["manifest"]
                    yield Leftover(name=name, filename=child, run=run)

    def remove_leftover(self, leftover: Leftover) -> None:
        """Delete it; raises what the storage raises."""
        self.storage.delete(f"{check_name(leftover.name)}/{leftover.filename}")

    def half_deleted(self) -> Iterator[Snapshot]:
        """Snapshots whose delete has begun and not ended, as far as their tombstones can be read."""
        for name in self.storage.list(""):
            if may_be_name(name) and self._directory.is_half_deleted(name) and not self._directory.exists(name):
                with contextlib.suppress(SnapshotError):
                    yield self._directory.buried(name)

    # Deleting

    def run_of(self, name: str) -> str:
        """The run that has made the snapshot called *name*, also if its delete has begun; raises as :meth:`delete`
        does."""
        check_name(name)
        if not self._directory.exists(name) and not self._archive.exists(name):
            with contextlib.suppress(SnapshotNotFoundError):
                return self._directory.buried(name).run
        return self.get(name).run

    def delete(self, name: str, *, run: str | None = None) -> None:
        """Delete the snapshot called *name*: its manifest first, then what the manifest names and what is noted beside
        it, nothing else.

        With *run* only the one that this run has made. A snapshot whose manifest can't be read or understood is not
        touched. Raises ``SnapshotPinnedError`` for one that is pinned.
        """
        check_name(name)
        if run is not None and self.run_of(name) != run:
            raise SnapshotNotFoundError(
                f"The snapshot {name!r} that was to be deleted from {label(self.storage)} is gone; another one has its "
                "name, and stays."
            )
        is_archive = self._archive.exists(name)
        if is_archive or self._directory.exists(name):
            self._refuse_pinned(self.get(name))
        if is_archive:
            # First, because afterwards the name may be a new snapshot's at once, and the notes be about that.
            notes.delete_notes(self.storage, name)
            self._archive.delete(name)
            return
        try:
            self._directory.delete(name)
        except SnapshotNotFoundError as error:
            raise SnapshotNotFoundError(f"There is no snapshot {name!r} in {label(self.storage)}.") from error

    def _refuse_pinned(self, snapshot: Snapshot) -> None:
        if (pin := self.pin(snapshot)) is not None:
            raise SnapshotPinnedError(
                f"The snapshot {snapshot.name!r} in {label(self.storage)} is {pin}. It was not deleted. To delete it "
                f"all the same, unpin it first (`manage.py snapshots unpin {snapshot.name}`)."
            )
