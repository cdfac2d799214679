"""Lets the engine use a connector of the contract's two methods, ours or somebody else's.

Its dump goes through a private directory, its restore is not atomic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.db import Error, connections

from django_snapshots.connectors import foreign, sqlite_files
from django_snapshots.connectors.facts import applied_migrations, own_connection, require_alias
from django_snapshots.connectors.generic_target import generic_target
from django_snapshots.connectors.identity import database_identity
from django_snapshots.connectors.preserved_rows import PreservedRows
from django_snapshots.connectors.protocols import DatabaseConnector
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError, SnapshotError
from django_snapshots.replaced import Finding
from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, Target


class FileConnectorAdapter:
    """A tier-one connector as a ``StreamingConnector``."""

    def __init__(self, connector: DatabaseConnector) -> None:
        self.connector = connector

    @contextlib.contextmanager
    def open_dump(self, subject: str, request: DumpRequest) -> Iterator[Dump]:
        """Let the connector dump into a private file, and offer that. Raises ``SnapshotConnectorError``."""
        require_alias(subject)
        if request.exclude_data:
            raise SnapshotConfigurationError(
                f'SNAPSHOTS["EXCLUDE_DATA"]["{subject}"] is set, but {type(self.connector).__name__}, a connector of '
                "two methods, dumps whole databases. Leave the alias out there, or give it another connector."
            )
        with request.temporary_directory() as directory:
            path = directory / _file_name(subject)
            facts = _facts(subject)
            started_at = datetime.now(UTC)
            theirs = _foreign(subject)
            extra = theirs.metadata(theirs.call("dump", lambda: self.connector.dump(subject, path)))
            theirs.require_content(path)
            metadata = {**facts, **extra, "row_counts": facts["row_counts"], "row_counts_exact": False}
            yield Dump(
                suffix=foreign.suffix(extra),
                started_at=started_at,
                chunks=foreign.read(path),
                metadata=lambda: metadata,
            )

    def target(self, subject: str) -> Target:
        """The alias's database, as far as Django can describe it."""
        return replace(generic_target(subject), identity=self.identity(subject))

    def identity(self, subject: str) -> str:
        """What the connector's own method ``identity`` says, if it has one; else by the engine.

        Raises ``SnapshotConnectorError`` if that method fails or returns no text.
        """
        ask = getattr(self.connector, "identity", None)
        return _foreign(subject).identity(lambda: ask(subject)) if callable(ask) else database_identity(subject)

    def end_sessions(self, db_alias: str, labels: Sequence[str]) -> int:
        """What the connector's own method ``end_sessions`` does, if it has one. Raises ``SnapshotConnectorError``."""
        end = getattr(self.connector, "end_sessions", None)
        return _foreign(db_alias).number("end_sessions", lambda: end(db_alias, labels)) if callable(end) else 0

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Write *source* to a private file; the connector is called by ``switch``.

        The safety copy is asked for here. A drill goes no further than the file: only the connector can read it.
        """
        require_alias(subject)
        with ExitStack() as stack:
            directory = stack.enter_context(request.temporary_directory())
            path = directory / _file_name(subject)
            _foreign(subject).spool(source, path)
            if not request.drill:
                # All that there will be of the old state: this restore can't be taken back, and keeps nobody out.
                request.safety()
            preserved = PreservedRows(subject, request.preserve_tables, directory / "preserved")
            return _PreparedFile(self.connector, subject, path, preserved, stack.pop_all())
        raise AssertionError  # an ExitStack that swallows an error would be a defect

    def sets_aside(self, subject: str) -> bool:
        """Always: the connector may replace every table."""
        return True

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """What such a restore can't promise."""
        name = type(self.connector).__name__
        if request.drill:
            text = f"{name} restores {subject!r} only in place, so a drill of it proves the stored file and no more."
            return [Finding(text=text, stops=False)]
        text = (
            f"{name} restores {subject!r} in place, and not as a whole or not at all: if it is interrupted, the safety "
            "snapshot is what brings the old state back. It keeps no writer out: what others write from the safety "
            "snapshot's moment on is lost. Stop the project's own processes first."
        )
        findings = [Finding(text=text, stops=False)]
        if request.preserve_tables:
            findings.append(Finding(text=_JOURNAL_IS_IN_IT.format(subject=subject), stops=False))
        return findings


_JOURNAL_IS_IN_IT = (
    "The tables of this package are preserved in {subject!r}: their rows are saved right before the restore and "
    "written back after it. If it is the database of the runs, the restore is refused while another run is at work, "
    "and none begins before its end; what is asked for meanwhile may be lost, and has to be asked for again. Better "
    "keep the runs in an alias of their own."
)


class _PreparedFile:
    """A file that waits for its connector's ``restore``."""

    def __init__(
        self, connector: DatabaseConnector, alias: str, path: Path, preserved: PreservedRows, stack: ExitStack
    ) -> None:
        self._connector = connector
        self._alias = alias
        self._path = path
        self._preserved = preserved
        self._stack = stack

    def check(self) -> None:
        """There is nothing to compare: only the connector can read the file, whose digests are proved."""

    def switch(self) -> None:
        """Save the rows that are to stay, call ``restore``, and write them back.

        When the connector fails, the database is in whatever state it left; the message says so.
        """
        self._preserved.save()
        failure = self._restore()
        # The connector may have replaced the database under Django's open connection.
        _disconnect(self._alias)
        if failure is None:
            self._preserved.write_back()
            return
        with contextlib.suppress(SnapshotError):  # the first cause is the one to tell
            self._preserved.write_back()
        raise failure

    def _restore(self) -> SnapshotError | None:
        try:
            _foreign(self._alias).call("restore", lambda: self._connector.restore(self._alias, self._path))
        except SnapshotError as error:
            return type(error)(
                f"{error} {type(self._connector).__name__} restores in place, so {self._alias!r} may be half restored; "
                "restore the safety snapshot."
            )
        return None

    def roll_back(self) -> None:
        """A tier-one restore can't be taken back."""
        raise SnapshotError(
            f"{type(self._connector).__name__} restored {self._alias!r} and can't take that back; restore the safety "
            "snapshot to get the old state back."
        )

    def discard(self) -> None:
        """Remove the private files."""
        self._stack.close()


def _foreign(alias: str) -> foreign.Foreign:
    return foreign.Foreign(
        who=f"the connector of {alias!r}", subject=alias, thing="the database", error=SnapshotConnectorError
    )


def _file_name(alias: str) -> str:
    return f"{quote(alias, safe='')}.{foreign.DEFAULT_SUFFIX}"


def _facts(alias: str) -> dict[str, Any]:
    """What Django can say about the database; counted before the dump's own moment, so never exact."""
    facts: dict[str, Any] = {
        "engine": connections[alias].vendor,
        "server_version": None,
        "client_version": None,
        "row_counts": {},
        "row_counts_exact": False,
        "migrations": [],
    }
    try:
        with _connection(alias) as connection:
            facts["server_version"] = ".".join(map(str, connection.get_database_version()))
            facts["migrations"] = applied_migrations(connection)
            facts["row_counts"] = _row_counts(connection)
    except (Error, OSError):
        # The connector may reach what Django can't.
        facts["warnings"] = ["Django could not look into the database, so there are no row counts."]
    return facts


@contextlib.contextmanager
def _connection(alias: str) -> Iterator[Any]:
    if sqlite_files.file_is_missing(alias):
        raise FileNotFoundError(alias)
    if connections[alias].vendor == "sqlite" and sqlite_files.locate(alias).path is None:
        yield connections[alias]  # nobody else sees what is in memory
        return
    with own_connection(alias) as connection:
        yield connection


def _row_counts(connection: Any) -> Mapping[str, int]:
    counts = {}
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT COUNT(*) FROM {connection.ops.quote_name(table)}")  # noqa: S608 - quoted
            counts[table] = cursor.fetchone()[0]
    return counts


def _disconnect(alias: str) -> None:
    connection = connections[alias]
    if not connection.in_atomic_block:
        connection.close()  # does nothing to a database in memory
