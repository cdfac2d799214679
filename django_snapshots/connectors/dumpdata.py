"""Any engine that Django knows: the rows of its models as JSON Lines, of one alias alone.

The schema is not in such a dump: it is restored into a database that has been migrated, in one transaction. What no
model covers (unmanaged tables, views, triggers, sequences beyond the highest key) is not in it either; the metadata
lists the tables that it leaves out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.serializers.base import DeserializationError
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from django_snapshots.connectors import model_rows, sqlite_files
from django_snapshots.connectors.facts import applied_migrations, require_alias
from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.generic_target import generic_target
from django_snapshots.connectors.left_out import require_no_pointers, require_tables
from django_snapshots.connectors.model_rows import Model, covered_models, table_of
from django_snapshots.connectors.recorded import exact_row_counts, row_counts
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.replaced import Finding, SnapshotUnsettled
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

# What makes all reads of one transaction show one moment: before it begins, and as its first statement.
_BEFORE = {"mysql": "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"}
_FIRST = {
    "postgresql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
}
_READERS_SEE_BEFORE = frozenset({"postgresql", "mysql", "oracle"})
_ONE_MOMENT = frozenset({"postgresql", "mysql", "sqlite", "oracle"})
_CANCEL_EVERY = 1000


class DumpDataConnector(FileTier):
    """The fallback: dumps and restores an alias through Django's models."""

    @contextlib.contextmanager
    def open_dump(self, subject: str, request: DumpRequest) -> Iterator[Dump]:
        """Write the rows into a private file and offer it. Raises ``SnapshotConnectorError``."""
        require_alias(subject)
        if sqlite_files.file_is_missing(subject):
            raise SnapshotConnectorError(f"The SQLite file of {subject!r} does not exist; nothing was dumped.")
        with request.temporary_directory() as directory:
            path = directory / "rows.jsonl"
            with _Own(subject) as own, _explained(subject, "dump"), own.active():
                started_at, metadata = _write(subject, own.connection, path, request)
            yield Dump(suffix="jsonl", started_at=started_at, chunks=_read(path), metadata=lambda: metadata)

    def target(self, subject: str) -> Target:
        """The alias's database, as far as Django can describe it."""
        return generic_target(subject)

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Replace the rows in a transaction that stays open. The dump is read twice; nothing is touched before the
        first pass has proved its digests and that its models are here, and a safety copy was taken. Refuses a
        drill: such a dump holds rows without tables, which only a migrated database can take.
        """
        require_alias(subject)
        if request.drill:
            raise SnapshotPreflightError(
                f"A dump by Django's models can't be restored beside {subject!r}, only into it; nothing was touched."
            )
        with ExitStack() as stack:
            own = stack.enter_context(_Own(subject))
            with _explained(subject, "prepare the restore of"), own.active():
                models = _models_to_replace(subject, source, own.connection, request)
            prepared = _PreparedRows(subject, source, request, own, models, stack.pop_all())
        try:
            prepared.load()
        except BaseException:
            prepared.discard()
            raise
        return prepared

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Parse every line, and count those of each model against the manifest; the database is not asked."""
        with _explained(subject, "examine a dump of"):
            return _examined(source, request)

    def drills(self, subject: str) -> bool:
        """Never: such a dump has rows and no tables, and can be loaded only into the database itself."""
        return False

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """What such a restore can't promise."""
        text = (
            f"{subject!r} is restored through Django's models, in one transaction. What it replaces is only in the "
            f"safety snapshot.{_gap(subject)}"
        )
        return [Finding(text=text, stops=False)]


def _gap(alias: str) -> str:
    if connections[alias].vendor in _READERS_SEE_BEFORE:
        return ""
    return " Rows that others write between that and the restore are lost: stop the project's own processes first."


def _examined(source: Source, request: RestoreRequest) -> Mapping[str, Any]:
    tables = {model._meta.label_lower: table_of(model) for model in apps.get_models(include_auto_created=True)}
    counts: dict[str, int] = {}
    for number, text in enumerate(model_rows.lines(source.open())):
        if number % _CANCEL_EVERY == 0 and request.processes.ended:
            raise SnapshotCancelled(f"The run was cancelled while {source.filename} was read.")
        if text:
            label = str(model_rows.parse(text)["model"]).lower()
            table = tables.get(label, label)
            counts[table] = counts.get(table, 0) + 1
    recorded = row_counts(source.metadata)
    known = set(tables.values())
    wrong = sorted(t for t in {*recorded, *counts} & known if recorded.get(t, 0) != counts.get(t, 0))
    if source.metadata.get("row_counts_exact") and wrong:
        said = "; ".join(f"{t}: {counts.get(t, 0)} instead of {recorded.get(t, 0)}" for t in wrong)
        raise SnapshotIntegrityError(f"{source.filename} does not hold the rows that the manifest says ({said}).")
    return {"tables": len(counts), "rows": sum(counts.values())}


class _Own:
    """A connection of our own that stands in for the thread's where Django's ORM looks for it.

    The thread's own connection may be in a transaction, and serves others between our moves. A database in memory has
    only the thread's.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        thread = connections[alias]
        self._shared = thread.vendor == "sqlite" and thread.is_in_memory_db()  # type: ignore[attr-defined]
        self.connection = thread if self._shared else connections.create_connection(alias)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, the ORM of this thread uses our connection for the alias."""
        usual = connections[self._alias]
        connections[self._alias] = self.connection
        try:
            yield
        finally:
            connections[self._alias] = usual

    def __enter__(self) -> _Own:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._shared:
            self.connection.close()


def _write(
    alias: str, connection: BaseDatabaseWrapper, path: Path, request: DumpRequest
) -> tuple[datetime, Mapping[str, Any]]:
    counts: dict[str, int] = {}
    exact = _prepare_session(connection)
    with transaction.atomic(using=alias):
        _begin_reading(connection)
        present = set(connection.introspection.table_names(include_views=True))
        started_at = datetime.now(UTC)
        models = covered_models(alias, request.exclude_tables)
        _require_left_out(alias, models, present, request.exclude_data)
        with path.open("xb") as file:
            for model in models:
                if table_of(model) in request.exclude_data:
                    counts[table_of(model)] = 0
                elif table_of(model) in present:
                    counts[table_of(model)] = _write_model(model, alias, file.write, request.processes)
        warnings = _left_out(models, present, request.exclude_tables)
        facts = {"row_counts": counts, "migrations": applied_migrations(connection)}
    return started_at, {
        "engine": connection.vendor,
        "server_version": ".".join(map(str, connection.get_database_version())),
        "client_version": None,
        "row_counts_exact": exact,
        "warnings": warnings,
        **facts,
    }


def _prepare_session(connection: BaseDatabaseWrapper) -> bool:
    """Ask for one moment for the whole transaction; return whether there will be one."""
    if connection.in_atomic_block:
        return False
    if connection.vendor in _BEFORE:
        with connection.cursor() as cursor:
            cursor.execute(_BEFORE[connection.vendor])
    return connection.vendor in _ONE_MOMENT


def _begin_reading(connection: BaseDatabaseWrapper) -> None:
    if connection.vendor in _FIRST:
        with connection.cursor() as cursor:
            cursor.execute(_FIRST[connection.vendor])


def _write_model(model: Model, alias: str, write: Callable[[bytes], Any], processes: Processes) -> int:
    number = 0
    for number, row in enumerate(model_rows.rows(model, alias), start=1):
        write(model_rows.line(row))
        if number % _CANCEL_EVERY == 0 and processes.ended:
            raise SnapshotCancelled(f"The run was cancelled while {alias!r} was dumped.")
    return number


def _require_left_out(alias: str, models: list[Model], present: set[str], tables: frozenset[str]) -> None:
    """Refuse to leave out the rows of *tables* where that can't be, or could not be restored."""
    require_tables(alias, tables, {table_of(model) for model in models} & present)
    pointers = (
        f"{table_of(model)}.{item.column} to {table_of(item.remote_field.model)}"
        for model in models
        if table_of(model) not in tables
        for item in model._meta.concrete_fields
        if item.remote_field is not None and table_of(item.remote_field.model) in tables
    )
    require_no_pointers(alias, pointers)


def _left_out(models: list[Model], present: set[str], excluded: frozenset[str]) -> list[str]:
    """Sentences about what the dump does not hold."""
    covered = {table_of(model) for model in models}
    migrations = str(MigrationRecorder.Migration._meta.db_table)
    others = sorted(present - covered - excluded - {migrations})
    missing = sorted(covered - present)
    said = []
    if others:
        said.append(f"No model covers these tables and views, so they are not in the dump: {', '.join(others)}.")
    if missing:
        said.append(f"These tables of models are not in the database: {', '.join(missing)}.")
    return said


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk


@contextlib.contextmanager
def _explained(alias: str, doing: str, state: str = "") -> Iterator[None]:
    try:
        yield
    except SnapshotError:
        raise
    except DeserializationError as error:
        raise SnapshotIntegrityError(f"Could not {doing} {alias!r}: {redact(str(error))}.{state}") from error
    except DatabaseError as error:
        raise SnapshotConnectorError(
            f"Could not {doing} {alias!r} through Django's models: {redact(str(error)).strip()}.{state}"
        ) from error
    except OSError as error:
        raise SnapshotConnectorError(f"Could not {doing} {alias!r}: {error.strerror or error}.{state}") from error


def _models_to_replace(
    alias: str, source: Source, connection: BaseDatabaseWrapper, request: RestoreRequest
) -> list[Model]:
    """Read the whole dump once; return the models whose rows it replaces, if all of them are here."""
    labels = {model_rows.parse(text)["model"] for text in model_rows.lines(source.open()) if text}
    present = set(connection.introspection.table_names())
    covered = {model._meta.label_lower: model for model in covered_models(alias, request.preserve_tables)}
    kept = {model._meta.label_lower for model in covered_models(alias) if table_of(model) in request.preserve_tables}
    unknown = sorted(labels - covered.keys() - kept)
    if unknown:
        raise SnapshotConnectorError(
            f"{source.filename} has rows of models that this project does not have for {alias!r}: "
            f"{', '.join(unknown)}. Nothing was changed. Install their apps, or restore with the code of that time."
        )
    missing = sorted(
        table_of(covered[label]) for label in labels & covered.keys() if table_of(covered[label]) not in present
    )
    if missing:
        raise SnapshotConnectorError(
            f"The database of {alias!r} has no table {', '.join(missing)}. Nothing was changed. Run "
            f"manage.py migrate --database {alias} first: a dump of this kind holds rows, not tables."
        )
    return [model for model in covered.values() if table_of(model) in present]


class _PreparedRows:
    """An open transaction in which the rows have been replaced."""

    switch_rank = SwitchRank.FINAL

    def __init__(
        self, alias: str, source: Source, request: RestoreRequest, own: _Own, models: list[Model], stack: ExitStack
    ) -> None:
        self._alias = alias
        self._source = source
        self._request = request
        self._own = own
        self._models = models
        self._stack = stack
        self._inserted: dict[str, int] = {}
        self._atomic: transaction.Atomic | None = None
        self._checks_disabled = False

    def load(self) -> None:
        """Open the transaction, empty the tables, insert the rows, and check the foreign keys.

        Where others read the state before an open transaction, the safety copy is taken when the tables are empty in
        ours: then every row that it has removed is in the copy. Elsewhere it comes before.
        """
        connection = self._own.connection
        if connection.vendor not in _READERS_SEE_BEFORE:
            self._request.safety()
        with _explained(self._alias, "prepare the restore of"), self._own.active():
            # SQLite can switch its checks off only outside of a transaction.
            self._checks_disabled = connection.disable_constraint_checking()
            self._atomic = transaction.atomic(using=self._alias)
            self._atomic.__enter__()
            for model in reversed(self._models):
                self._empty(model)
        if self._own.connection.vendor in _READERS_SEE_BEFORE:
            self._request.safety()
        with _explained(self._alias, "prepare the restore of"), self._own.active():
            self._inserted = model_rows.insert(self._wanted_lines(), self._alias)
            self._check_foreign_keys()

    def check(self) -> None:
        """Count the rows inside the transaction, against what was read and what the manifest says."""
        with _explained(self._alias, "check"), self._own.active():
            counts = {table_of(model): model._base_manager.using(self._alias).count() for model in self._models}
        expected = {table_of(model): self._inserted.get(table_of(model), 0) for model in self._models}
        if (recorded := exact_row_counts(self._source.metadata)) is not None:
            expected |= {table: number for table, number in recorded.items() if number or table in expected}
        wrong = sorted(
            t for t in {*expected, *counts} - self._request.preserve_tables if expected.get(t) != counts.get(t)
        )
        if wrong:
            said = "; ".join(f"{t}: {counts.get(t, 'no table')} instead of {expected.get(t)}" for t in wrong)
            raise SnapshotIntegrityError(
                f"{self._alias!r} did not get the rows that {self._source.filename} should hold ({said}); the "
                "transaction is rolled back and nothing is changed."
            )

    def switch(self) -> None:
        """Set the sequences and commit."""
        if self._atomic is None:
            raise SnapshotError(f"{self._alias!r} was switched or given up already.")
        try:
            with _explained(self._alias, "restore", " Nothing was changed."), self._own.active():
                model_rows.reset_sequences(self._alias, self._models)
                self._commit()
        except BaseException:
            # Sequences of PostgreSQL don't take part in transactions.
            with contextlib.suppress(DatabaseError), self._own.active():
                model_rows.reset_sequences(self._alias, self._models)
            raise

    def _commit(self) -> None:
        """Raises ``SnapshotUnsettled`` if the server's answer is missing: it may have committed."""
        try:
            self._leave()
        except (InterfaceError, OperationalError) as error:
            if self._own.connection.vendor == "sqlite":
                raise  # in this very process; it is rolled back
            raise SnapshotUnsettled(
                f"{self._alias!r} holds either what it held or the snapshot: its server did not answer the commit "
                f"({redact(str(error)).strip()})."
            ) from error

    def roll_back(self) -> None:
        """A committed transaction can't be taken back."""
        raise SnapshotError(
            f"The rows of {self._alias!r} were replaced in one transaction, which is committed; restore the safety "
            "snapshot to get the old ones back."
        )

    def discard(self) -> None:
        """Roll back what was not committed, and disconnect."""
        if self._atomic is not None:
            with contextlib.suppress(DatabaseError), self._own.active():
                transaction.set_rollback(True, using=self._alias)
                self._leave()
        self._stack.close()

    def _leave(self) -> None:
        atomic, self._atomic = self._atomic, None
        if atomic is not None:
            try:
                atomic.__exit__(None, None, None)
            finally:
                if self._checks_disabled:
                    self._own.connection.enable_constraint_checking()
                    self._checks_disabled = False

    def _empty(self, model: Model) -> None:
        connection = self._own.connection
        with connection.cursor() as cursor:  # not TRUNCATE, which commits on MySQL
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table_of(model))}")  # noqa: S608 - quoted

    def _wanted_lines(self) -> Iterator[bytes]:
        wanted = {model._meta.label_lower for model in self._models}
        chunks = self._source.open()
        for number, text in enumerate(model_rows.lines(chunks)):
            if number % _CANCEL_EVERY == 0 and self._request.processes.ended:
                raise SnapshotCancelled(f"The run was cancelled while {self._alias!r} was loaded; nothing is changed.")
            if text and model_rows.parse(text)["model"] in wanted:
                yield text

    def _check_foreign_keys(self) -> None:
        try:
            self._own.connection.check_constraints(table_names=[table_of(model) for model in self._models])
        except IntegrityError as error:
            if not self._checks_disabled:
                raise
            self._request.report(f"Database {self._alias!r}, as it was dumped: {error}")
