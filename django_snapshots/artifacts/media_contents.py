"""Reads a media archive to its end and writes nothing: what is in it, and whether a restore would take it."""

from __future__ import annotations

from collections.abc import Callable

from django_snapshots.artifacts.media_reader import ArchiveReader
from django_snapshots.artifacts.media_tar import Member
from django_snapshots.artifacts.media_walk import Counts
from django_snapshots.exceptions import SnapshotCancelled, SnapshotIntegrityError
from django_snapshots.pipeline.stream import closing_chunks
from django_snapshots.processes import Processes
from django_snapshots.transfer import Source


def look_through(source: Source, processes: Processes, found: Callable[[Member], None] = lambda _: None) -> Counts:
    """Read every byte of *source*; *found* is told of each member.

    Raises ``SnapshotIntegrityError`` for an archive that is damaged or hostile, by the rules of ``ArchiveReader`` as a
    restore, or not of the manifest's counts.
    """
    counts = Counts()
    with closing_chunks(source.open()) as chunks:
        reader = ArchiveReader(chunks, source.filename)
        for member in reader.members():
            _count(member, counts)
            for _ in reader.content():
                if processes.ended:
                    raise SnapshotCancelled(f"The run was cancelled while {source.filename} was read.")
            found(member)
    for key, number in counts.as_metadata().items():
        expected = source.metadata.get(key)
        if expected is not None and expected != number:
            raise SnapshotIntegrityError(f"{source.filename} holds {number} {key}, but the manifest says {expected}.")
    return counts


def _count(member: Member, counts: Counts) -> None:
    counts.directories += member.is_directory
    counts.links += member.is_link
    counts.files += not (member.is_directory or member.is_link)
    counts.size += member.size
