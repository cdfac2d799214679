"""The journey of a drill: every database is built, checked, looked at and thrown away, one after the other."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import connections

from django_snapshots.artifacts.capabilities import drills_of, end_sessions_of, settle_of
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.artifacts.media_contents import look_through
from django_snapshots.artifacts.media_root import media_root
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.blame import speaks_against
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.content import source_of
from django_snapshots.drill import looks
from django_snapshots.drill.files import StoredNames, missing_files
from django_snapshots.drill.marks import Mark
from django_snapshots.drill.scratch import scratch_alias
from django_snapshots.examine import Examined, Examiner
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotDrillError,
    SnapshotError,
    SnapshotPreflightError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.plan import DRILL_LEVEL
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.replaced import Inspectable
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import Prepared, RestoreRequest
from django_snapshots.verify import check_artifacts

logger = logging.getLogger("django_snapshots")


@dataclass(kw_only=True)
class Drilled:
    """What became of one database."""

    subject: str
    into: str
    """The alias through whose server the scratch database was made."""
    seconds: float = 0.0
    """How long its restore took, its checks of rows included; not what was asked of it then."""
    tables: int = 0
    rows: int = 0
    rows_compared: bool = False
    """Whether the manifest's row counts are exact, and were compared."""
    checks: int = 0
    """How many of the project's own checks have passed."""
    files: int | None = None
    """``FileField`` values that were looked up in the media; ``None`` if there were no media to look in."""
    files_missing: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For a task's result."""
        return {**vars(self), "seconds": round(self.seconds, 3), "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class DrillReport:
    """What a drill has proved; that it exists means that nothing was wrong."""

    name: str
    size: int
    filenames: tuple[str, ...]
    seconds: float
    databases: tuple[Drilled, ...]
    examined: tuple[Examined, ...]
    """What was read to its end and not restored."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        return {
            "name": self.name,
            "level": DRILL_LEVEL,
            "size": self.size,
            "files": list(self.filenames),
            "seconds": round(self.seconds, 3),
            "databases": [item.to_json() for item in self.databases],
            "examined": [item.to_json() for item in self.examined],
            "notes": list(self.notes),
        }


@dataclass(kw_only=True)
class Drill:
    """One attempt at a drill."""

    settings: Settings
    processes: Processes
    run: uuid.UUID
    token: int = 1
    labels: Callable[[int], str] = lambda _token: "django-snapshots"
    """Names an attempt of this run to servers, by its token."""
    observe: Callable[[int], None] = lambda _: None
    """Told the length of every stored chunk that was read, and 0 where something else moves; may raise."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def make(self, name: str | None) -> DrillReport:
        """Drill the snapshot called *name*, or the latest.

        Raises ``SnapshotDrillError`` with everything that is wrong with it. What keeps it from being proved and says
        nothing of it, such as a server that is away, is raised as it is, unless something was found wrong before: that
        is never lost. Nothing is left behind, whatever is raised.
        """
        began = time.monotonic()
        catalog = Catalog(self.settings.storage)
        snapshot = catalog.latest() if name is None else catalog.get(name)
        restorable = self._restorable(snapshot)
        self._end_older_attempts(snapshot, restorable)
        check_artifacts(catalog, snapshot, snapshot.artifacts, level=1, observe=self.observe)
        try:
            with self._media(snapshot) as stored:
                others = [record for record in snapshot.artifacts if record not in restorable]
                examined = tuple(self._examine(snapshot, others, stored))
                databases = tuple(self._drill(snapshot, record, stored) for record in restorable)
        except SnapshotCancelled:
            raise
        except Exception as error:
            if not self.problems:
                raise
            raise self._failed(snapshot, f" What else there is was not proved: {_told(error)}.") from error
        if self.problems:
            raise self._failed(snapshot)
        return DrillReport(
            name=snapshot.name,
            size=snapshot.size,
            filenames=tuple(record.filename for record in snapshot.artifacts),
            seconds=time.monotonic() - began,
            databases=databases,
            examined=examined,
            notes=tuple(self.notes),
        )

    def _failed(self, snapshot: Snapshot, more: str = "") -> SnapshotDrillError:
        problems = "; ".join(self.problems)
        return SnapshotDrillError(
            f"The drill of snapshot {snapshot.name!r} failed, do not rely on it: {problems}.{more}"
        )

    @contextlib.contextmanager
    def _judged(self, what: str = "") -> Iterator[None]:
        """What is wrong with the snapshot is noted, and the drill goes on; anything else ends it."""
        try:
            yield
        except Exception as error:
            if not speaks_against(error):
                raise
            self.problems.append(f"{what}{_told(error)}")

    # What is to be restored

    def _into(self, record: ArtifactRecord) -> str:
        return self.settings.drill_databases.get(record.subject, record.subject)

    def _kind(self) -> ArtifactKind:
        return self.settings.kind("database")

    def _restorable(self, snapshot: Snapshot) -> list[ArtifactRecord]:
        """The databases that can be restored here only to be looked at; the others are told."""
        found: list[ArtifactRecord] = []
        for record in snapshot.artifacts:
            if record.type != "database":
                continue
            into = self._into(record)
            if into not in connections:
                self.notes.append(
                    f"{record.subject} was not restored: this project has no alias {into!r}. Name one of the same "
                    'engine in SNAPSHOTS["DRILL_DATABASES"].'
                )
            elif into not in self._looked_after():
                self.notes.append(
                    f"{record.subject} was not restored: the alias is not among those of snapshots, so that no sweep "
                    "would remove what a killed drill leaves there. Name an alias for it in "
                    'SNAPSHOTS["DRILL_DATABASES"], perhaps itself.'
                )
            elif not drills_of(self._kind(), into):
                self.notes.append(f"{record.subject} was not restored: its connector restores only into the target.")
            else:
                found.append(record)
        if not found:
            raise SnapshotPreflightError(
                f"No database of {snapshot.name!r} can be drilled here. {' '.join(self.notes)} A verify of level 3 "
                "proves as much as can be proved without a restore."
            )
        return found

    def _looked_after(self) -> set[str]:
        """The aliases beside which the collector of garbage (``execution/garbage.py``) looks for scratch databases."""
        return {*self._kind().subjects(), *self.settings.drill_databases.values()}

    def _mark(self, snapshot: Snapshot, record: ArtifactRecord, token: int) -> str:
        return str(Mark(run=self.run, token=token, index=snapshot.artifacts.index(record)))

    def _end_older_attempts(self, snapshot: Snapshot, records: Sequence[ArtifactRecord]) -> None:
        """End what dead attempts have left; what can't be ended now, a sweep ends."""
        older = range(1, self.token)
        for record in records if older else ():
            try:
                end_sessions_of(self._kind(), self._into(record), [self.labels(token) for token in older])
                for token in older:
                    settle_of(self._kind(), self._into(record), self._mark(snapshot, record, token), {})
            except SnapshotError as error:
                logger.warning("What an attempt before this one has left could not be removed yet: %s", error)

    # What is only read

    @contextlib.contextmanager
    def _media(self, snapshot: Snapshot) -> Iterator[StoredNames | None]:
        """Where the names of the media's files are kept, if the snapshot has any that are to be looked up."""
        if not any(record.type == "media" for record in snapshot.artifacts) or self._media_kind() is None:
            yield None
            return
        with private_directory(self.settings.temporary_directory) as directory:
            stored = StoredNames(directory / "names.sqlite3")
            with contextlib.closing(stored):
                yield stored

    def _media_kind(self) -> MediaArtifact | None:
        """The kind of the media; ``None`` where this project has none that a row could point into."""
        try:
            kind = self.settings.kind("media")
            if isinstance(kind, MediaArtifact):
                media_root(kind.location)
                return kind
        except SnapshotError:
            pass
        return None

    def _examine(
        self, snapshot: Snapshot, records: Sequence[ArtifactRecord], stored: StoredNames | None
    ) -> Iterator[Examined]:
        examiner = Examiner(
            settings=self.settings, processes=self.processes, label=self.labels(self.token), observe=self.observe
        )
        for record in records:
            with self._judged():
                if record.type == "media" and stored is not None:
                    yield self._look_through(snapshot, record, stored)
                else:
                    yield examiner.examine(snapshot, record)

    def _look_through(self, snapshot: Snapshot, record: ArtifactRecord, stored: StoredNames) -> Examined:
        source = source_of(Catalog(self.settings.storage), snapshot, record, self.observe)
        counts = look_through(source, self.processes, stored.add)
        return Examined(type=record.type, subject=record.subject, filename=record.filename, found=counts.as_metadata())

    # What is restored

    def _drill(self, snapshot: Snapshot, record: ArtifactRecord, stored: StoredNames | None) -> Drilled:
        drilled = Drilled(subject=record.subject, into=self._into(record))
        began = time.monotonic()
        with self._judged(f"{record.subject}: "), self._built(snapshot, record, drilled) as prepared:
            prepared.check()
            drilled.seconds = time.monotonic() - began
            self._count(record, drilled)
            self._look(record, prepared, drilled, stored)
        return drilled

    @contextlib.contextmanager
    def _built(self, snapshot: Snapshot, record: ArtifactRecord, drilled: Drilled) -> Iterator[Prepared]:
        """The database, restored beside its target; gone at the end, whatever happens."""
        request = RestoreRequest(
            processes=self.processes,
            label=self.labels(self.token),
            temporary_directory=lambda: private_directory(self.settings.temporary_directory),
            report=drilled.notes.append,
            mark=self._mark(snapshot, record, self.token),
            about={"drill": str(self.run), "snapshot": snapshot.name},
            drill=True,
        )
        source = source_of(Catalog(self.settings.storage), snapshot, record, self.observe)
        prepared = self._kind().prepare(drilled.into, source, request)
        try:
            yield prepared
        finally:
            try:
                prepared.discard()
            except Exception as error:  # noqa: BLE001 - it hides neither the drill's result nor its error
                logger.warning("The scratch database of %s could not be removed yet: %s", record, redact(str(error)))
                drilled.notes.append("Its scratch database could not be removed yet; the next sweep does it.")

    def _count(self, record: ArtifactRecord, drilled: Drilled) -> None:
        counts = record.metadata.get("row_counts")
        if isinstance(counts, dict):
            drilled.tables, drilled.rows = len(counts), sum(counts.values())
        drilled.rows_compared = record.metadata.get("row_counts_exact") is True
        if not drilled.rows_compared:
            drilled.notes.append("The manifest's row counts are not exact, so they prove nothing.")

    def _look(self, record: ArtifactRecord, prepared: Prepared, drilled: Drilled, stored: StoredNames | None) -> None:
        if not isinstance(prepared, Inspectable):
            drilled.notes.append("Its connector does not let Django look at what was restored.")
            return
        with scratch_alias(record.subject, prepared.django_settings()) as connection:
            found = looks.check_migrations(connection, record.metadata.get("migrations"))
            self._note(record, found)
            drilled.notes += looks.compare_with_code(connection)
            failed = looks.run_checks(self.settings.drill_checks, connection.alias, self._moved)
            drilled.checks = len(self.settings.drill_checks) if not failed else 0
            self._note(record, failed)
            self._look_for_files(record, connection, drilled, stored)

    def _note(self, record: ArtifactRecord, problems: Sequence[str]) -> None:
        """At once: what comes after it may fail."""
        self.problems += [f"{record.subject}: {problem}" for problem in problems]

    def _look_for_files(
        self, record: ArtifactRecord, connection: Any, drilled: Drilled, stored: StoredNames | None
    ) -> None:
        kind = self._media_kind()
        if stored is None or kind is None or record.subject not in connections:
            return
        root: Path = media_root(kind.location).path
        missing = missing_files(record.subject, connection, root, stored, self._moved)
        drilled.files, drilled.files_missing = missing.values, missing.count
        drilled.notes += filter(None, [missing.note()])

    def _moved(self) -> None:
        """Something moves, though no byte does; raises if the drill has to end."""
        if self.processes.ended:
            raise SnapshotCancelled("The drill was ended.")
        self.observe(0)


def _told(error: Exception) -> str:
    """What *error* says, without secrets; one that is not ours with its kind."""
    if isinstance(error, SnapshotError):
        return str(error).rstrip(".")
    return redact(f"{type(error).__name__}: {str(error).strip()}")
