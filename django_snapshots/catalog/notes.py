"""Notes beside a snapshot: what became known of it, or was decided about it, after its manifest was written.

A note is one small JSON document, ``<name>/<kind>.json``, in both formats: an archive lies beside the directory of its
name, and its notes in that. A note names the run of the snapshot that it is about, so that what is left of a deleted
one says nothing of another that gets its name later; and it carries its own digest. Who can die when, and what then
holds:

- A writer dies: the old note is there, or the new one. In a storage of the basic tier, which replaces nothing, there
  may be none, or a damaged one, which is told as damaged.
- A deleter dies: the notes of a directory go after its manifest and before its tombstone, so that the next delete finds
  them. Those of an archive go before it: a delete that died has taken what was known of it, and the archive is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from django_snapshots.catalog.objects import patiently, small
from django_snapshots.exceptions import SnapshotError, SnapshotIntegrityError, SnapshotNotFoundError
from django_snapshots.manifest import NOTE_KINDS, Snapshot, check_name, plain_json, to_iso
from django_snapshots.sealed import digest_of, from_sealed, to_sealed
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage

VERSION = "1"
MAX_NOTE_SIZE = 1024 * 1024
"""Bytes; a note that is larger is neither written nor read."""

_FIELDS = frozenset({"version", "kind", "snapshot", "run", "written_at", "content"})


@dataclass(frozen=True, kw_only=True)
class Note:
    """One note, read and checked."""

    kind: str
    """One of ``NOTE_KINDS``."""
    run: str
    """That of the snapshot that it is about."""
    written_at: datetime
    """Aware, in UTC; by the clock of whoever wrote it."""
    content: Mapping[str, Any]
    """Plain JSON, as it was given; what is in it is checked by whoever knows the kind."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """All notes beside one snapshot."""

    found: Mapping[str, Note] = field(default_factory=dict)
    """By their kind."""
    unreadable: Mapping[str, SnapshotError] = field(default_factory=dict)
    """Kinds whose note is there and can't be read, with the reason."""


def note_path(name: str, kind: str) -> str:
    """Where the note lies."""
    if kind not in NOTE_KINDS:
        raise ValueError(f"There is no kind of note {kind!r}; there is: {', '.join(NOTE_KINDS)}.")
    return f"{check_name(name)}/{kind}.json"


def read_notes(storage: SnapshotStorage, name: str, run: str) -> Notes:
    """Every note beside the snapshot *name* of *run*, with one question to the storage where there is none."""
    children = set(storage.list(check_name(name)))
    found: dict[str, Note] = {}
    unreadable: dict[str, SnapshotError] = {}
    for kind in NOTE_KINDS:
        if f"{kind}.json" not in children:
            continue
        try:
            if (note := read_note(storage, name, run, kind)) is not None:
                found[kind] = note
        except SnapshotError as error:
            unreadable[kind] = error
    return Notes(found=found, unreadable=unreadable)


def read_note(storage: SnapshotStorage, name: str, run: str, kind: str) -> Note | None:
    """The note of *kind*; ``None`` if there is none about the snapshot of *run*.

    Raises ``SnapshotIntegrityError`` or ``SnapshotVersionError`` for one that can't be read, and what the storage
    raises: then whether there is one is not known.
    """
    path = note_path(name, kind)
    try:
        note = patiently(storage, lambda: _parsed(small(storage, path, MAX_NOTE_SIZE), path, name, kind))
    except SnapshotNotFoundError:
        return None
    return note if note.run == run else None


def write_note(storage: SnapshotStorage, snapshot: Snapshot, kind: str, content: Mapping[str, Any]) -> Note:
    """Put a note beside *snapshot*, in the place of the one of its kind that may be there.

    Raises ``SnapshotConfigurationError`` for what is no plain JSON, ``SnapshotIntegrityError`` for what is too large.
    """
    path = note_path(snapshot.name, kind)
    data: dict[str, Any] = {
        "version": VERSION,
        "kind": kind,
        "snapshot": snapshot.name,
        "run": snapshot.run,
        "written_at": to_iso(datetime.now(UTC)),
        "content": plain_json(content, f"The note {path}"),
    }
    data["digest"] = digest_of(data)
    written = to_sealed(data)
    if len(written) > MAX_NOTE_SIZE:
        raise SnapshotIntegrityError(f"The note {path} would have more than {MAX_NOTE_SIZE} bytes; it was not written.")
    if not isinstance(storage, AdvancedSnapshotStorage):
        storage.delete(path)
    storage.write(path, BytesIO(written))
    return _parsed(written, path, snapshot.name, kind)


def delete_note(storage: SnapshotStorage, name: str, kind: str) -> None:
    """Remove the note; nothing if there is none."""
    storage.delete(note_path(name, kind))


def delete_notes(storage: SnapshotStorage, name: str) -> None:
    """Remove every note beside the snapshot *name*."""
    for kind in NOTE_KINDS:
        delete_note(storage, name, kind)


def _parsed(content: bytes, path: str, name: str, kind: str) -> Note:
    data = from_sealed(content, path, what="a note", version=VERSION, most=MAX_NOTE_SIZE)
    if set(data) != _FIELDS or (data["kind"], data["snapshot"]) != (kind, name):
        raise SnapshotIntegrityError(f"{path} is no note of this kind about {name!r}: it was moved or made by hand.")
    run, noted, moment = data["run"], data["content"], _moment(data["written_at"])
    if not isinstance(run, str) or not isinstance(noted, dict) or moment is None:
        raise SnapshotIntegrityError(f"{path} has no proper run, time or content.")
    return Note(kind=kind, run=run, written_at=moment, content=noted)


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
