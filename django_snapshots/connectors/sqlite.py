"""SQLite: the online backup API into a private file, and back into the live file.

A dump is one complete database file, which any SQLite opens. While it is taken, writers go on in WAL mode; with a
rollback journal they wait until the pages are copied.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db import connections

from django_snapshots.connectors import sqlite_files as files
from django_snapshots.connectors.facts import applied_migrations
from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.sqlite_files import PAGES_PER_STEP, POLL_SECONDS, Patience, Place, explained
from django_snapshots.connectors.sqlite_switch import Switch
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError, SnapshotIntegrityError
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
                facts = _settle(place, path, request.exclude_tables)
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
        """Write *source* to a private file and check that it is a sound database. The target is not touched."""
        place = files.locate(subject)
        with ExitStack() as stack:
            directory = stack.enter_context(request.temporary_directory())
            staged = directory / "staged.sqlite3"
            with explained(place, "prepare the restore of"):
                _spool(source, staged)
                counts = _checked(place, source, staged, request)
            switch = Switch(place, request.processes, self._lock_timeout, request.preserve_tables)
            return _PreparedDatabase(place, source, request, directory, counts, switch, stack.pop_all())
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

    def _copy(self, place: Place, path: Path, request: DumpRequest) -> tuple[datetime, Mapping[str, Any]]:
        opened = files.open_memory(place) if place.path is None else files.open_file(place)
        patience = Patience(place, self._lock_timeout, request.processes)
        with opened as source, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous=OFF")
            with _one_moment(place, source, patience):
                started_at = datetime.now(UTC)
                properties = {name: files.pragma(source, name) for name in _PROPERTIES}
                source.backup(copy, pages=PAGES_PER_STEP, progress=patience, sleep=POLL_SECONDS)
        return started_at, properties


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


def _settle(place: Place, path: Path, exclude: frozenset[str]) -> Mapping[str, Any]:
    """Leave the excluded tables out of the private copy, prove it sound, and return what is to be recorded of it."""
    with files.private_wrapper(place.alias, path) as wrapper:
        copy: sqlite3.Connection = wrapper.connection
        # Written in WAL mode its pages would pass through a log; the stored file must be complete without one.
        files.plain_journal(copy)
        _drop(copy, exclude)
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
    recorded = source.metadata
    if not recorded.get("row_counts_exact") or dict(recorded["row_counts"]) == dict(counts):
        return
    expected: Mapping[str, int] = recorded["row_counts"]
    wrong = [
        f"{name}: {counts.get(name, 'no table')} instead of {expected.get(name, 'no table')}"
        for name in sorted({*expected, *counts})
        if counts.get(name) != expected.get(name)
    ]
    raise SnapshotIntegrityError(
        f"{source.filename} does not hold the rows that the manifest says; {place.title} was not changed. Rows in "
        f"{files.shown(wrong)}."
    )


@dataclass
class _Undo:
    """What brings the replaced state back."""

    kept: Path | None = None
    created: bool = False


class _PreparedDatabase:
    """A sound private copy, on its way into the live database."""

    switch_rank = SwitchRank.REVERSIBLE

    def __init__(
        self,
        place: Place,
        source: Source,
        request: RestoreRequest,
        directory: Path,
        counts: Mapping[str, int],
        switch: Switch,
        stack: ExitStack,
    ) -> None:
        self._place = place
        self._source = source
        self._request = request
        self._directory = directory
        self._counts = counts
        self._switch = switch
        self._stack = stack
        self._undo: _Undo | None = None

    def check(self) -> None:
        """Compare the row counts with the manifest's, where those are exact."""
        _compare(self._place, self._source, self._counts)

    def django_settings(self) -> Mapping[str, Any]:
        """The alias's own entry, with the private file as its database."""
        return {**connections[self._place.alias].settings_dict, "NAME": str(self._directory / "staged.sqlite3")}

    def switch(self) -> None:
        """Replace the live content in one transaction; a file that is missing appears complete or not at all."""
        staged = self._directory / "staged.sqlite3"
        with explained(self._place, "restore", " It was not changed."):
            if self._place.path is not None and _create(self._place.path, staged, self._request):
                self._undo = _Undo(created=True)
                return
            kept = self._directory / "replaced.sqlite3"
            self._switch.replace(staged, kept)
            self._undo = _Undo(kept=kept)

    def roll_back(self) -> None:
        """Bring back what ``switch`` replaced; preserved tables keep the rows that they got since."""
        if self._undo is None:
            raise SnapshotError(f"There is nothing to bring back for {self._place.title}: it was not switched.")
        with explained(self._place, "bring back"):
            if self._undo.kept is not None:
                self._switch.replace(self._undo.kept, self._directory / "undone.sqlite3")
            elif self._place.path is not None:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    _beside(self._place.path, suffix).unlink(missing_ok=True)
        self._undo = None

    def discard(self) -> None:
        """Remove the private files, the replaced state among them."""
        self._stack.close()


def _create(path: Path, staged: Path, request: RestoreRequest) -> bool:
    """Give a missing file its content, whole, under a name that nobody has yet; ``False`` if there is a file."""
    if path.exists():
        return False
    if not path.parent.is_dir():
        raise SnapshotConnectorError(f"The directory {path.parent} does not exist; make it (or mount it) first.")
    _set_aside(path, request)
    # A directory of its own, so that nobody can meet a half-written file and the link stays on one file system.
    with tempfile.TemporaryDirectory(prefix=".django-snapshots-", dir=path.parent) as name:
        fresh = Path(name) / path.name
        _copy_durably(staged, fresh)
        try:
            os.link(fresh, path)
        except FileExistsError:
            return False
    _sync_directory(path.parent)
    return True


def _set_aside(path: Path, request: RestoreRequest) -> None:
    """Rename logs of a database file that is gone: SQLite would take them for the new file's own."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for suffix in ("-wal", "-shm", "-journal"):
        orphan = _beside(path, suffix)
        if orphan.exists():
            aside = _beside(path, f"{suffix}.orphan-{stamp}")
            orphan.rename(aside)
            request.report(f"{orphan} belonged to a database file that is gone; it is now {aside.name}.")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _copy_durably(source: Path, destination: Path) -> None:
    """Copy with the permissions that SQLite gives a new database: 0644 less the umask."""
    descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(_read(source))
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
