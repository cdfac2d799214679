"""The format "archive": one ``<name>.tar`` in the storage's root, the manifest first, then the artifacts."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from django_snapshots.catalog import tar
from django_snapshots.catalog.cursor import Cursor
from django_snapshots.catalog.objects import label, proved, require_size, size_of
from django_snapshots.catalog.records import StoredArtifact, path_of
from django_snapshots.exceptions import (
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotStorageError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.pipeline.stream import Watch, closing_chunks
from django_snapshots.storage.protocols import (
    AdvancedSnapshotStorage,
    SnapshotStorage,
    requires_advanced_storage,
)

SUFFIX = ".tar"
ATTEMPT = ".django-snapshots-archive"
"""How the name of an archive begins that is not published yet; it lies where the attempts' objects do."""


class ArchiveFormat:
    """Snapshots that are single objects. To read one any storage will do, to publish one takes the advanced tier."""

    def __init__(self, storage: SnapshotStorage) -> None:
        self.storage = storage

    def exists(self, name: str) -> bool:
        """Whether an object is there, readable or not."""
        return self.storage.exists(_path(name))

    def read(self, name: str) -> Snapshot:
        """What the manifest says; reads the archive's first member and no more.

        Raises ``SnapshotNotFoundError``, ``SnapshotIntegrityError`` or ``SnapshotVersionError``.
        """
        path = _path(name)
        with contextlib.closing(Cursor(self.storage, path)) as cursor:
            block = cursor.take(tar.BLOCK)
            size = tar.read_manifest_header(block, name, path)
            content = cursor.take(size)
            snapshot = Snapshot.from_bytes(content, f"the manifest in {path}")
            if snapshot.name != name:
                raise SnapshotIntegrityError(f"{path} holds the manifest of another snapshot, {snapshot.name!r}.")
            if block != tar.manifest_header(name, size, snapshot.created_at):
                raise SnapshotIntegrityError(f"{path} was changed after it was written: its first header.")
            _require(cursor.take(len(tar.padding(size))), tar.padding(size), f"{path}, behind its manifest,")
        return snapshot

    def reader(self, snapshot: Snapshot) -> ArchiveReader:
        """The artifacts in its archive."""
        return ArchiveReader(self.storage, snapshot)

    # Publishing

    def require_storage(self) -> None:
        """Raise ``SnapshotStorageCapabilityError`` if archives can't be published in this storage."""
        requires_advanced_storage(self.storage, 'A snapshot of SNAPSHOTS["FORMAT"] "archive"')

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
        """Stream what the attempts stored into one object, and move that to its name.

        *published* reads back what is there of this run in this format or raises ``SnapshotExistsError``; *rival* says
        whether the name exists in the other format.
        """
        self.require_storage()
        final = replace(snapshot, artifacts=tuple(_with_plain_names(stored)))
        try:
            self._assemble(final, stored, gate, check)
        except (SnapshotExistsError, SnapshotIntegrityError, SnapshotNotFoundError):
            # Perhaps another finisher of this run has published it, and removed what this one was reading.
            found = published(snapshot)
            if found is None:
                raise
            return found
        if rival(snapshot.name):
            self.storage.delete(_path(snapshot.name))
            raise SnapshotExistsError(
                f"A snapshot {snapshot.name!r} was published as a directory in {label(self.storage)} at the same "
                "moment; choose another name."
            )
        found = published(snapshot)
        if found is None:
            raise SnapshotStorageError(
                f"{label(self.storage)} does not give back {_path(snapshot.name)}, which was just written."
            )
        return found

    def _assemble(
        self,
        snapshot: Snapshot,
        stored: Sequence[StoredArtifact],
        gate: Callable[[], None],
        check: Callable[[], None],
    ) -> None:
        assert isinstance(self.storage, AdvancedSnapshotStorage)  # noqa: S101 - for the types; it was required
        for item in stored:
            self._require_staged(snapshot.name, item.record)
        manifest = snapshot.to_bytes()
        plan = tar.layout(snapshot, len(manifest))
        own = f"{snapshot.name}/{ATTEMPT}.{snapshot.run}-{uuid.uuid4().hex[:16]}"
        try:
            watched = Watch(lambda _count: check())
            with closing_chunks(watched(self._chunks(snapshot, manifest, plan, stored))) as chunks:
                self.storage.stream_write(own, chunks)
            if (size := size_of(self.storage, own)) != plan.size:
                raise SnapshotIntegrityError(f"{own} has {size} bytes, but {plan.size} were written.")
            gate()
            check()
            self.storage.atomic_move(own, _path(snapshot.name))
        except Exception:
            # The first error is the one to report.
            with contextlib.suppress(Exception):
                self.storage.delete(own)
            raise

    def _require_staged(self, name: str, record: ArtifactRecord) -> None:
        try:
            require_size(self.storage, path_of(name, record.filename), record)
        except SnapshotNotFoundError:
            # Says what that means.
            for _ in proved(self.storage, path_of(name, record.filename), record):
                pass

    def _chunks(
        self, snapshot: Snapshot, manifest: bytes, plan: tar.Layout, stored: Sequence[StoredArtifact]
    ) -> Iterator[bytes]:
        """The whole archive. Raises ``SnapshotIntegrityError`` if what goes into it is not what the attempts wrote."""
        yield tar.manifest_header(snapshot.name, len(manifest), snapshot.created_at)
        yield manifest + tar.padding(len(manifest))
        for member, item in zip(plan.members, stored, strict=True):
            yield member.header
            yield from proved(self.storage, path_of(snapshot.name, item.record.filename), item.record)
            yield tar.padding(item.record.size)
        yield tar.END

    def clear(self, name: str, run: str, filenames: Sequence[str]) -> None:
        """Remove what the attempts of *run* stored, and archives of it that were never published.

        Nobody else writes these names. Raises what the storage raises.
        """
        for filename in filenames:
            self.storage.delete(path_of(name, filename))
        self.clear_attempts(name, run)

    def clear_attempts(self, name: str, run: str) -> None:
        """Remove archives of *run* that were never published."""
        if not isinstance(self.storage, AdvancedSnapshotStorage):
            return
        for child in self.storage.list(name):
            if child.startswith(f"{ATTEMPT}.{run}-"):
                self.storage.delete(f"{name}/{child}")

    # Deleting

    def delete(self, name: str) -> None:
        """Delete the one object. A death leaves all of it or nothing, so there is no tombstone."""
        self.storage.delete(_path(name))


class ArchiveReader:
    """The artifacts of one snapshot, each a part of its archive, at the place where the manifest puts it."""

    def __init__(self, storage: SnapshotStorage, snapshot: Snapshot) -> None:
        self._path = _path(snapshot.name)
        self._cursor = Cursor(storage, self._path)
        try:
            block = self._cursor.take(tar.BLOCK)
            size = tar.read_manifest_header(block, snapshot.name, self._path)
            self._layout = tar.layout(snapshot, size)
        except BaseException:
            self._cursor.close()
            raise
        self._seen = ""

    def size_of(self, record: ArtifactRecord) -> int:
        """Bytes that are there of it; its header must say what the manifest says."""
        member = self._member(record)
        length = self._cursor.length()
        if length is not None and length <= member.start:
            raise SnapshotNotFoundError(f"{self._path} ends before {record.filename}.")
        self._check_header(member)
        return record.size if length is None else min(record.size, length - member.start)

    def open(self, record: ArtifactRecord) -> Iterator[bytes]:
        """Its bytes in chunks; the end proves the padding behind it too."""
        member = self._member(record)
        if self._seen != record.filename:
            self._check_header(member)
        self._cursor.go_to(member.start)
        yield from self._cursor.chunks(record.size)
        filling = tar.padding(record.size)
        _require(self._cursor.take(len(filling)), filling, f"{self._path}, behind {record.filename},")

    def check_end(self) -> None:
        """The two blocks of zeros at the end, and nothing behind them."""
        self._cursor.go_to(self._layout.end)
        _require(self._cursor.take(len(tar.END) + 1), tar.END, f"{self._path}, at its end,")

    def close(self) -> None:
        """Close the archive."""
        self._cursor.close()

    def _member(self, record: ArtifactRecord) -> tar.Member:
        for member in self._layout.members:
            if member.record.filename == record.filename:
                return member
        raise SnapshotNotFoundError(f"{self._path} has no {record.filename}.")

    def _check_header(self, member: tar.Member) -> None:
        self._seen = ""
        self._cursor.go_to(member.position)
        _require(
            self._cursor.take(len(member.header)), member.header, f"{self._path}, before {member.record.filename},"
        )
        self._seen = member.record.filename


def _path(name: str) -> str:
    return f"{name}{SUFFIX}"


def _with_plain_names(stored: Sequence[StoredArtifact]) -> Iterator[ArtifactRecord]:
    """The records under their plain names; of two that share one, the second keeps its attempt's.

    Case is ignored, so that an archive can be unpacked where a file system does.
    """
    taken: set[str] = set()
    for item in stored:
        folded = item.plain_filename.casefold()
        yield item.record if folded in taken else replace(item.record, filename=item.plain_filename)
        taken.add(folded)


def _require(found: bytes, wanted: bytes, where: str) -> None:
    if found != wanted:
        what = "was cut off" if len(found) < len(wanted) else "was changed after it was written"
        raise SnapshotIntegrityError(f"{where} {what}.")
