"""Looks into the content of a snapshot: level 3 of a verify, and what a drill does not restore.

Every artifact is read to its end, decompressed, and its content digest compared; then its kind says what it holds, as
far as it can look into it: the dump tool's own list, an end mark, rows that are counted. Asks nothing of any target.

Who can die when: nothing is changed anywhere; private directories are removed by whoever comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django_snapshots.artifacts.capabilities import examine_of
from django_snapshots.blame import speaks_against
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.content import source_of
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.processes import Processes
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import RestoreRequest, Source

DIGESTS_ONLY = "digests only: nothing in this project can look into it"


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What one artifact holds."""

    type: str
    subject: str
    filename: str
    found: Mapping[str, Any] | None
    """What its kind tells; ``None`` where only the digests could be proved."""
    notes: tuple[str, ...] = ()
    """What its kind has to say besides, in sentences."""

    def to_json(self) -> dict[str, Any]:
        """For a task's result."""
        return {
            "type": self.type,
            "subject": self.subject,
            "filename": self.filename,
            "found": DIGESTS_ONLY if self.found is None else dict(self.found),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """What an examination needs of whoever has it made."""

    settings: Settings
    processes: Processes
    label: str = "django-snapshots"
    observe: Callable[[int], None] = field(default=lambda _: None)
    """Told the length of every stored chunk that was read; may raise."""

    def examine_all(self, snapshot: Snapshot, records: Sequence[ArtifactRecord]) -> tuple[Examined, ...]:
        """Look into each of *records*; raise ``SnapshotIntegrityError`` with everything that is wrong.

        What keeps one from being looked into and says nothing of it is raised as it is, once all of them were tried
        and if nothing is wrong with any.
        """
        examined: list[Examined] = []
        problems: list[str] = []
        hindrances: list[SnapshotError] = []
        for record in records:
            try:
                examined.append(self.examine(snapshot, record))
            except SnapshotCancelled:
                raise
            except SnapshotNotFoundError:
                problems.append(f"{record.filename} is missing")
            except SnapshotError as error:
                if speaks_against(error):
                    problems.append(str(error).rstrip("."))
                else:
                    hindrances.append(error)
        if hindrances and not problems:
            raise hindrances[0]
        if problems:
            raise SnapshotIntegrityError(
                f"Snapshot {snapshot.name!r} is damaged, do not restore from it: {'; '.join(problems)}."
            )
        return tuple(examined)

    def examine(self, snapshot: Snapshot, record: ArtifactRecord) -> Examined:
        """Look into one artifact; raises ``SnapshotIntegrityError``."""
        source = _Whole(source_of(Catalog(self.settings.storage), snapshot, record, self.observe))
        notes: list[str] = []
        request = RestoreRequest(
            processes=self.processes,
            label=self.label,
            temporary_directory=lambda: private_directory(self.settings.temporary_directory),
            report=notes.append,
        )
        found = self._found(record, source.source, request)
        source.require_end()
        return Examined(
            type=record.type, subject=record.subject, filename=record.filename, found=found, notes=tuple(notes)
        )

    def _found(self, record: ArtifactRecord, source: Source, request: RestoreRequest) -> Mapping[str, Any] | None:
        """What the kind says; ``None`` also where this project has no such kind or alias any more."""
        try:
            kind = self.settings.kind(record.type)
            if record.subject not in kind.subjects():
                return None
        except SnapshotConfigurationError:
            return None
        return examine_of(kind, record.subject, source, request)


class _Whole:
    """Sees to it that a source is read to its end at least once: only that proves its digests."""

    def __init__(self, source: Source) -> None:
        self._open = source.open
        self._ended = False
        self.source = replace(source, open=self._watched)

    def _watched(self) -> Iterator[bytes]:
        yield from self._open()
        self._ended = True

    def require_end(self) -> None:
        """Read it once more if nobody has come to its end. Raises ``SnapshotIntegrityError``."""
        if not self._ended:
            for _ in self._open():
                pass
