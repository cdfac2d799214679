"""SQLite: the online backup API into a private file, and back into the live file.

A dump is one complete database file, which any SQLite opens. While it is taken, writers go on in WAL mode; with a
rollback journal they wait until the pages are copied.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db import connections

from django_snapshots.connectors import sqlite_chosen, sqlite_kept, sqlite_labels
from django_snapshots.connectors import sqlite_files as files
from django_snapshots.connectors.facts import applied_migrations
from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.left_out import require_no_pointers, require_tables
from django_snapshots.connectors.recorded import exact_row_counts
from django_snapshots.connectors.sqlite_files import PAGES_PER_STEP, POLL_SECONDS, Patience, Place, explained
from django_snapshots.connectors.sqlite_preflight import findings
from django_snapshots.connectors.sqlite_ways import Way, Workshop, switched
from django_snapshots.exceptions import (
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.marked import Marked, Stage, new_record, where_we_are
from django_snapshots.replaced import Beside, Finding, Outcome
from django_snapshots.transfer import (
    CHUNK_SIZE,
    Dump,
    DumpRequest,
    Prepared,
    RestoreRequest,
    Source,
    SwitchRank,
    Target,
)

_PROPERTIES = ("journal_mode", "page_size", "encoding", "user_version", "application_id", "auto_vacuum")


class SQLiteConnector(FileTier):
    """Dumps and restores a SQLite alias, in a file or in this process's memory.

    *lock_timeout* is how many seconds other connections' locks may let nothing through before it gives up.
    """

    def __init__(self, lock_timeout: float = 30.0) -> None:
        self._lock_timeout = lock_timeout

    @contextlib.contextmanager
    def open_dump(self, subject: str, request: DumpRequest) -> Iterator[Dump]:
        """Copy the database into a private file, check that, and offer it. Raises ``SnapshotConnectorError``."""
        place = files.locate(subject)
        with request.temporary_directory() as directory:
            path = directory / "copy.sqlite3"
            with explained(place, "dump"):
                started_at, properties = self._copy(place, path, request)
                facts = _settle(place, path, request)
            metadata = {
                "engine": "sqlite",
                "server_version": sqlite3.sqlite_version,
                "client_version": None,
                "row_counts_exact": True,
                **properties,
                **facts,
            }
            yield Dump(suffix="sqlite3", started_at=started_at, chunks=_read(path), metadata=lambda: metadata)

    def target(self, subject: str) -> Target:
        """The file, or the database in memory; empty when there are no tables but the journal's."""
        place = files.locate(subject)
        where = f'"{place.path}"' if place.path else f"in the memory of process {os.getpid()}"
        return Target(
            name=place.name,
            description=f"SQLite database {where}",
            empty=_is_empty(place),
            identity=files.identity(place),
        )

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Write *source* to a private file and check that it is a sound database. The target is not touched.

        Under a mark the file is beside the target, and what the switch replaces is kept there.
        """
        return self._prepare(subject, source, request, _checked, {})

    def _prepare(
        self, subject: str, source: Source, request: RestoreRequest, look: _Look, facts: Mapping[str, Any]
    ) -> _PreparedDatabase:
        place = files.locate(subject)
        if request.tables:
            sqlite_chosen.require_present(place)
            facts = {**facts, sqlite_kept.TABLES: sorted(request.tables)}
        with ExitStack() as stack:
            marked = None
            if request.mark and place.path is not None and not request.drill:
                marked = _directory_beside(place, request, facts)
                stack.callback(_remove, marked, request)
            directory = marked.path if marked else stack.enter_context(request.temporary_directory())
            staged = directory / sqlite_kept.STAGED
            with explained(place, "prepare the restore of"):
                _spool(source, staged)
                counts = look(place, source, staged, request)
                if request.tables:
                    sqlite_chosen.require_fit(place, staged, request, self._lock_timeout)
            if marked is None and not request.drill:
                request.safety()
            workshop = Workshop(place, request, directory, marked, self._lock_timeout)
            return _PreparedDatabase(workshop, source, counts, stack.pop_all())
        raise AssertionError  # an ExitStack that swallows an error would be a defect

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Let SQLite check a private copy, and compare its rows with the manifest's."""
        place = files.locate(subject)
        with request.temporary_directory() as directory:
            staged = directory / "staged.sqlite3"
            with explained(place, "examine a dump of"):
                _spool(source, staged)
                counts = _checked(place, source, staged, request)
            _compare(place, source, counts)
        return {"tables": len(counts), "rows": sum(counts.values())}

    def drills(self, subject: str) -> bool:
        """Always: what ``prepare`` builds is a private file."""
        return True

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """As ``Preflights.preflight``."""
        return findings(files.locate(subject), source, request)

    def keeps(self, subject: str) -> bool:
        """A file is kept beside itself; what is in memory is not."""
        return files.locate(subject).path is not None

    def restores_tables(self, subject: str) -> bool:
        """Always."""
        return True

    def keeps_tables(self, subject: str) -> bool:
        """As the whole is kept."""
        return self.keeps(subject)

    def beside(self, subject: str) -> Sequence[Beside]:
        """As ``KeepsReplaced.beside``; nothing for a database in memory."""
        place = files.locate(subject)
        return sqlite_kept.beside(place) if place.path is not None else ()

    def settle(self, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
        """As ``KeepsReplaced.settle``. What was in a dead process's memory is gone with it, so nobody can see it."""
        place = files.locate(subject)
        return Outcome.UNSEEN if place.path is None else sqlite_kept.settle(place, mark, noted, self._lock_timeout)

    def bring_back(self, subject: str, mark: str, request: RestoreRequest) -> Prepared:
        """As ``KeepsReplaced.bring_back``: a copy of the kept file goes the way of every restore.

        Of a restore of single tables only their rows come back, whatever *request* names. A database that was damaged
        when it was replaced comes back so; one that can't be read at all raises ``SnapshotPreflightError``.
        """
        place = files.locate(subject)
        if place.path is None:
            raise SnapshotNotFoundError(f"Nothing is kept of the in-memory database of {place.title}.")
        with explained(place, "bring back what was kept of"):
            path, tables = sqlite_kept.kept_file(place, mark, self._lock_timeout)
        source = Source(filename=str(path), metadata={}, open=lambda: _read(path))
        return self._prepare(subject, source, replace(request, tables=tables), _as_it_was, {"brought_back": mark})

    def remove(self, subject: str, mark: str) -> None:
        """As ``KeepsReplaced.remove``."""
        place = files.locate(subject)
        if place.path is not None:
            sqlite_kept.remove(place, mark, self._lock_timeout)

    def _copy(self, place: Place, path: Path, request: DumpRequest) -> tuple[datetime, Mapping[str, Any]]:
        opened = files.open_memory(place) if place.path is None else files.open_file(place)
        patience = Patience(place, self._lock_timeout, request.processes)
        with opened as source, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous=OFF")
            with _one_moment(place, source, patience):
                started_at = datetime.now(UTC)
                properties = {name: files.pragma(source, name) for name in _PROPERTIES}
                source.backup(copy, pages=PAGES_PER_STEP, progress=patience, sleep=POLL_SECONDS)
                _require_every_table(place, source, copy)
        return started_at, properties


def _require_every_table(place: Place, source: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """In the moment of the copy: whether it has what the database has."""
    if missing := sorted(set(files.table_names(source)) - set(files.table_names(copy))):
        raise SnapshotConnectorError(
            f"The copy of {place.title} lacks the tables {', '.join(missing)}, which the database has; it was not "
            "dumped. Was the file replaced while it was copied? Take the snapshot again."
        )


@contextlib.contextmanager
def _one_moment(place: Place, source: sqlite3.Connection, patience: Patience) -> Iterator[None]:
    """Hold a read transaction, without which another process's writes would make the copy start again and again."""
    if place.path is None:
        patience.execute(source, "SELECT count(*) FROM sqlite_master")
        if not files.table_names(source):
            raise SnapshotConnectorError(
                f"The in-memory database of {place.title} has no tables in this process; nothing was dumped. An "
                "in-memory database exists only where it was made: take its snapshot inline, not through a queue."
            )
        yield
        return
    source.execute("BEGIN")
    patience.execute(source, "SELECT count(*) FROM sqlite_master")
    yield
    source.execute("ROLLBACK")


def _settle(place: Place, path: Path, request: DumpRequest) -> Mapping[str, Any]:
    """Leave the excluded tables and rows out of the private copy, prove it sound, and return what is to be recorded."""
    with files.private_wrapper(place.alias, path) as wrapper:
        copy: sqlite3.Connection = wrapper.connection
        # Written in WAL mode its pages would pass through a log; the stored file must be complete without one.
        files.plain_journal(copy)
        _drop(copy, request.exclude_tables | {sqlite_labels.TABLE})
        _empty_out(place, copy, request.exclude_data)
        faults, content = files.integrity_problems(copy)
        if faults:
            raise SnapshotConnectorError(
                f"The SQLite database of {place.title} is damaged, so it was not dumped: {files.shown(faults)}. "
                "Repair it (REINDEX, or .recover of the sqlite3 program) or bring back an older snapshot."
            )
        facts = {"row_counts": files.row_counts(copy), "migrations": applied_migrations(wrapper)}
        files.plain_journal(copy)
    return {**facts, "warnings": content} if content else facts


def _drop(copy: sqlite3.Connection, exclude: frozenset[str]) -> None:
    copy.execute("PRAGMA secure_delete=ON")
    for table in sorted(exclude.intersection(files.table_names(copy))):
        copy.execute(f"DROP TABLE {files.quoted(table)}")


def _empty_out(place: Place, copy: sqlite3.Connection, tables: frozenset[str]) -> None:
    """Delete the rows of *tables* so that nothing of them is left in the file."""
    if not tables:
        return
    present = files.table_names(copy)
    require_tables(place.alias, tables, present)
    require_no_pointers(place.alias, _pointers(copy, tables, present))
    for table in sorted(tables):
        find = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
        triggers = copy.execute(find, (table,)).fetchall()
        for name, _ in triggers:
            copy.execute(f"DROP TRIGGER {files.quoted(name)}")
        copy.execute(f"DELETE FROM {files.quoted(table)}")  # noqa: S608 - quoted
        for _, sql in triggers:
            copy.execute(sql)


def _pointers(copy: sqlite3.Connection, tables: frozenset[str], present: list[str]) -> Iterator[str]:
    """Foreign keys of other tables that point at *tables*, in words; SQLite takes any case of a name."""
    folded = {table.casefold() for table in tables}
    for other in set(present) - tables:
        for key in copy.execute(f"PRAGMA foreign_key_list({files.quoted(other)})"):
            if key[2].casefold() in folded:
                yield f"{other}.{key[3]} to {key[2]}"


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk


def _is_empty(place: Place) -> bool:
    if place.path is not None and not place.path.exists():
        return True
    opened = files.open_memory(place) if place.path is None else files.open_file(place)
    try:
        with explained(place, "look into"), opened as connection:
            return all(name.startswith(files.OWN_TABLES) for name in files.table_names(connection))
    except SnapshotConnectorError:
        return False  # something is there that can't be read: there may be much to lose


def _spool(source: Source, path: Path) -> None:
    with path.open("xb") as file:
        for chunk in source.open():
            file.write(chunk)


_Look = Callable[[Place, Source, Path, RestoreRequest], Mapping[str, int]]


def _as_it_was(place: Place, source: Source, path: Path, request: RestoreRequest) -> Mapping[str, int]:
    """Report the faults of a private copy of a kept file: it was the live database with them, and nobody waits for a
    better one. Its rows are counted nowhere."""
    try:
        with files.open_private(place.alias, path) as staged:
            faults, _ = files.integrity_problems(staged)
            files.plain_journal(staged)
            for table in request.tables:
                for _row in staged.execute(f"SELECT * FROM {files.quoted(table)} NOT INDEXED"):  # noqa: S608 - quoted
                    pass
    except sqlite3.DatabaseError as error:
        if not files.is_damage(error):
            raise
        raise SnapshotPreflightError(
            f"What was replaced of {place.title} can't be read ({error}), so it can't be brought back; nothing was "
            f"changed. It is {source.filename}; put what .recover of the sqlite3 program finds in it there by hand."
        ) from error
    if faults:
        request.report(
            f"Database {place.alias!r} was damaged when it was replaced, and comes back so: {files.shown(faults)}."
        )
    return {}


def _checked(place: Place, source: Source, path: Path, request: RestoreRequest) -> Mapping[str, int]:
    try:
        return _inspect(place, source, path, request)
    except sqlite3.DatabaseError as error:
        if not files.is_damage(error):
            raise
        raise SnapshotIntegrityError(
            f"{source.filename} is a damaged SQLite database; {place.title} was not changed: {error}."
        ) from error


def _inspect(place: Place, source: Source, path: Path, request: RestoreRequest) -> Mapping[str, int]:
    """Prove that the private file is a sound database; return its row counts. Rows that break rules are reported."""
    if not files.file_has_header(path):
        raise SnapshotIntegrityError(f"{source.filename} is not a SQLite database; {place.title} was not changed.")
    with files.open_private(place.alias, path) as staged:
        faults, content = files.integrity_problems(staged)
        if faults:
            raise SnapshotIntegrityError(
                f"{source.filename} is a damaged SQLite database; {place.title} was not changed: {files.shown(faults)}."
            )
        files.plain_journal(staged)
        for problem in [*content, *files.foreign_key_problems(staged)]:
            request.report(f"Database {place.alias!r}, as it was dumped: {problem}")
        return files.row_counts(staged)


def _compare(place: Place, source: Source, counts: Mapping[str, int]) -> None:
    """Raise ``SnapshotIntegrityError`` unless the rows are those of the manifest, where it knows them exactly."""
    expected = exact_row_counts(source.metadata)
    if expected is None or expected == dict(counts):
        return
    wrong = [
        f"{name}: {counts.get(name, 'no table')} instead of {expected.get(name, 'no table')}"
        for name in sorted({*expected, *counts})
        if counts.get(name) != expected.get(name)
    ]
    raise SnapshotIntegrityError(
        f"{source.filename} does not hold the rows that the manifest says; {place.title} was not changed. Rows in "
        f"{files.shown(wrong)}."
    )


def _directory_beside(place: Place, request: RestoreRequest, facts: Mapping[str, Any]) -> Marked:
    shelf = sqlite_kept.shelf_of(place)
    if not shelf.parent.is_dir():
        raise SnapshotConnectorError(f"The directory {shelf.parent} does not exist; make it (or mount it) first.")
    request.note(where_we_are(shelf.parent))
    with explained(place, "prepare the restore of"):
        return shelf.make(request.mark, new_record(request.about, file=place.real.name, **facts))


def _remove(marked: Marked, request: RestoreRequest) -> None:
    """Remove what was built, if nobody has settled it meanwhile."""
    try:
        marked.remove()
    except (OSError, SnapshotError) as error:
        request.report(f"{marked.path} could not be removed ({error}); the next sweep tries again.")


class _PreparedDatabase:
    """A sound private copy, on its way into the live database."""

    switch_rank = SwitchRank.REVERSIBLE

    def __init__(self, workshop: Workshop, source: Source, counts: Mapping[str, int], stack: ExitStack) -> None:
        self._workshop = workshop
        self._place = workshop.place
        self._source = source
        self._counts = counts
        self._stack = stack
        self._way: Way | None = None
        self._begun = False

    def django_settings(self) -> Mapping[str, Any]:
        """The alias's own settings, with the private copy for its file."""
        staged = str(self._workshop.file(sqlite_kept.STAGED))
        return {**connections.settings[self._place.alias], "NAME": staged}

    def check(self) -> None:
        """Compare the row counts with the manifest's, where those are exact."""
        _compare(self._place, self._source, self._counts)

    def switch(self) -> None:
        """Replace the live content in one transaction; a file that is missing appears complete or not at all."""
        if self._workshop.request.drill:
            raise SnapshotError(f"A drill of {self._place.title} is only looked at; it is never switched.")
        self._begun = True
        with explained(self._place, "restore", " It was not changed."):
            self._way = switched(self._workshop)

    def roll_back(self) -> None:
        """Bring back what ``switch`` replaced; preserved tables keep the rows that they got since."""
        if self._way is None:
            raise SnapshotError(f"There is nothing to bring back for {self._place.title}: it was not switched.")
        with explained(self._place, "bring back"):
            self._way.back()
        self._way = None

    def discard(self) -> None:
        """Remove the private files; under a mark, what was replaced stays."""
        begun, self._begun = self._begun, False
        if begun and (marked := self._workshop.marked) is not None:
            self._end(marked)
        self._stack.close()

    def _end(self, marked: Marked) -> None:
        """Whatever has interrupted a switch, the label in the live file tells what came of it."""
        self._stack.pop_all()
        try:
            if marked.is_still_there and marked.stage is not Stage.KEPT:
                sqlite_kept.settle_directory(self._place, marked, self._workshop.seconds)
        except (OSError, sqlite3.Error, SnapshotError) as error:
            self._workshop.request.report(
                f"{marked.path} could not be put in order ({error}); the next sweep does that. Nothing is lost."
            )
        finally:
            marked.close()
