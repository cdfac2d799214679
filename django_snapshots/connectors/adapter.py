"""Lets the engine use a connector of the contract's two methods, ours or somebody else's.

Its dump goes through a private directory, its restore is not atomic. What it raises is told without its context: the
exception of a failed program carries the whole command, often with a password in it.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from django.db import Error, connections

from django_snapshots.connectors import sqlite_files
from django_snapshots.connectors.facts import applied_migrations, own_connection, require_alias
from django_snapshots.connectors.generic_target import generic_target
from django_snapshots.connectors.preserved_rows import PreservedRows
from django_snapshots.connectors.protocols import DatabaseConnector
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConnectorError, SnapshotError
from django_snapshots.redaction import redact
from django_snapshots.transfer import CHUNK_SIZE, Dump, DumpRequest, Prepared, RestoreRequest, Source, Target

_DEFAULT_SUFFIX = "dump"
_SUFFIX = re.compile(r"[A-Za-z0-9]{1,16}")
_SAID_AT_MOST = 4000

Result = TypeVar("Result")


class FileConnectorAdapter:
    """A tier-one connector as a ``StreamingConnector``."""

    def __init__(self, connector: DatabaseConnector) -> None:
        self.connector = connector

    @contextlib.contextmanager
    def open_dump(self, subject: str, request: DumpRequest) -> Iterator[Dump]:
        """Let the connector dump into a private file, and offer that. Raises ``SnapshotConnectorError``."""
        require_alias(subject)
        with request.temporary_directory() as directory:
            path = directory / _file_name(subject)
            facts = _facts(subject)
            started_at = datetime.now(UTC)
            returned = _call(subject, "dump", lambda: self.connector.dump(subject, path))
            extra = _json_object(subject, returned)
            _require_content(subject, path)
            metadata = {**facts, **extra, "row_counts": facts["row_counts"], "row_counts_exact": False}
            yield Dump(suffix=_suffix(extra), started_at=started_at, chunks=_read(path), metadata=lambda: metadata)

    def target(self, subject: str) -> Target:
        """The alias's database, as far as Django can describe it."""
        return generic_target(subject)

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Write *source* to a private file; the connector is called by ``switch``."""
        require_alias(subject)
        with ExitStack() as stack:
            directory = stack.enter_context(request.temporary_directory())
            path = directory / _file_name(subject)
            _spool(subject, source, path)
            preserved = PreservedRows(subject, request.preserve_tables, directory / "preserved")
            return _PreparedFile(self.connector, subject, path, preserved, stack.pop_all())
        raise AssertionError  # an ExitStack that swallows an error would be a defect


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
            _call(self._alias, "restore", lambda: self._connector.restore(self._alias, self._path))
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


def _call(alias: str, what: str, function: Callable[[], Result]) -> Result:
    """Call somebody else's code; every error becomes one of ours, without secrets and without what led to it."""
    failure: SnapshotError
    try:
        return function()
    except SnapshotCancelled as error:
        failure = SnapshotCancelled(redact(str(error)))
    except SnapshotError as error:
        failure = SnapshotConnectorError(redact(str(error)))
    except subprocess.CalledProcessError as error:
        failure = SnapshotConnectorError(f"The {what} of {alias!r} failed: {_program_failure(error)}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        said = redact(str(error))[:_SAID_AT_MOST]
        failure = SnapshotConnectorError(f"The {what} of {alias!r} failed with {type(error).__name__}: {said}")
    # Raised out here, where no exception is being handled, it carries no context.
    raise failure


def _program_failure(error: subprocess.CalledProcessError) -> str:
    program = error.cmd if isinstance(error.cmd, str) else str(error.cmd[0])
    words = error.stderr or error.output or b""
    text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
    said = redact(text.strip())[-_SAID_AT_MOST:]
    return f"{Path(program.split()[0]).name} exited with status {error.returncode}: {said or 'it said nothing'}"


def _file_name(alias: str) -> str:
    return f"{quote(alias, safe='')}.{_DEFAULT_SUFFIX}"


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


def _json_object(alias: str, returned: object) -> dict[str, Any]:
    """What a connector's ``dump`` returned, as it will be read back from the manifest."""
    if not isinstance(returned, dict):
        raise SnapshotConnectorError(
            f"The connector of {alias!r} must return a dict of metadata from dump, not {type(returned).__name__}."
        )
    try:
        content: dict[str, Any] = json.loads(json.dumps(returned, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SnapshotConnectorError(
            f"The metadata that the connector of {alias!r} returned from dump can't be written as JSON: {error}."
        ) from None
    return content


def _spool(alias: str, source: Source, path: Path) -> None:
    with path.open("xb") as file:
        for chunk in source.open():
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise SnapshotConnectorError(
                    f"The dump of {alias!r} could not be written to {path.parent}: {error.strerror}. "
                    "Nothing was changed."
                ) from error


def _suffix(extra: Mapping[str, Any]) -> str:
    wanted = extra.get("format")
    return wanted if isinstance(wanted, str) and _SUFFIX.fullmatch(wanted) else _DEFAULT_SUFFIX


def _require_content(alias: str, path: Path) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        what = "an empty file" if path.is_file() else "no file"
        raise SnapshotConnectorError(
            f"The connector of {alias!r} said that it dumped the database, but wrote {what}; nothing was stored."
        )


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk


def _disconnect(alias: str) -> None:
    connection = connections[alias]
    if not connection.in_atomic_block:
        connection.close()  # does nothing to a database in memory
