"""Restores one database: the dump is proved and loaded into a schema beside it, counted there, and then exchanged.

Who can die when, and what then holds, is told in ``exchange``; until ``switch`` nothing in the target changes.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import InterfaceError

from django_snapshots.connectors.mysql import definitions
from django_snapshots.connectors.mysql.client import Client, find_client
from django_snapshots.connectors.mysql.exchange import Exchange, own_tables
from django_snapshots.connectors.mysql.findings import require_place, strangers
from django_snapshots.connectors.mysql.kept import (
    Schemas,
    database_of,
    halfway,
    hidden_names,
    kept,
    mark_label,
    remove,
    report_lost,
    settle,
    turn,
    unfinished,
)
from django_snapshots.connectors.mysql.load import Loader
from django_snapshots.connectors.mysql.options import connection_options, secrets_in, write_option_file
from django_snapshots.connectors.mysql.preflight import not_to_be_made_again, require_kept, require_restorable
from django_snapshots.connectors.mysql.record import (
    MARKER,
    Definition,
    Label,
    Record,
    Rows,
    Side,
    create_record,
    still_building,
    tables_in,
    text,
)
from django_snapshots.connectors.mysql.rehearsed import Rehearsal, enabled
from django_snapshots.connectors.mysql.scan import Findings, scan
from django_snapshots.connectors.mysql.server import (
    LONGEST,
    Server,
    count_rows,
    execute,
    explained,
    quote,
    rows,
    server_connection,
    without_database,
)
from django_snapshots.connectors.mysql.sessions import Marks
from django_snapshots.connectors.recorded import row_counts, texts
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.redaction import redact
from django_snapshots.replaced import Outcome, SnapshotUnsettled
from django_snapshots.transfer import RestoreRequest, Source, SwitchRank


@dataclass(kw_only=True)
class MySQLRestore:
    """A state beside a database, and the session that will exchange the two and never reconnects."""

    db_alias: str
    request: RestoreRequest
    mark: str
    target: str
    schemas: Schemas
    sessions: contextlib.ExitStack
    connection: BaseDatabaseWrapper
    incoming: Side
    incoming_is_kept: bool = False
    counts: Mapping[str, int]
    """The rows that the incoming tables must have."""
    switch_rank: SwitchRank = SwitchRank.REVERSIBLE
    record: Record | Rows | None = None

    def django_settings(self) -> Mapping[str, Any]:
        """The alias's entry of ``DATABASES``, with the schema that was built in the place of its database."""
        return {**connections[self.db_alias].settings_dict, "NAME": self.incoming.home}

    def check(self) -> None:
        """Count the rows of what was built. Raises ``SnapshotIntegrityError`` if they are others than the dump's."""
        wrong = []
        with explained(self.db_alias, "could not be counted beside the target"):
            execute(self.connection, f"USE {quote(self.incoming.home)}")
            there = tables_in(self.connection, self.incoming.home)
            for name, count in self.counts.items():
                if name not in there:
                    wrong.append(f"{name} is missing")
                elif (found := count_rows(self.connection, name)) != count:
                    wrong.append(f"{name} has {found} rows and not {count}")
        if wrong:
            raise SnapshotIntegrityError(
                f"The load of {self.db_alias!r} is not whole: {'; '.join(wrong)}. {self.target} was not touched."
            )

    def switch(self) -> None:
        """Exchange the two. Raises ``SnapshotError`` that says what state the database is in."""
        try:
            with turn(self.connection, self.db_alias, self.target):
                self.exchange()
        except (SnapshotError, DatabaseError, InterfaceError) as error:
            if failure := self._after(error):
                raise failure from error

    def exchange(self) -> None:
        """What ``switch`` does in its turn."""
        self.record = record = self._record()
        exchange = Exchange(self.connection, record)
        exchange.forward()
        report_lost(exchange, self.db_alias, self.request.report, forward=True)

    def roll_back(self) -> None:
        """Never called by a restore, which brings back what is kept: that loses nothing that was written meanwhile."""
        raise SnapshotConnectorError(
            f"The restore of {self.db_alias!r} can't be rolled back: what it has replaced is kept, and "
            "`manage.py snapshots undo` brings it back."
        )

    @property
    def home(self) -> str:
        """The schema where the record is, which was made."""
        return "" if self.record is None else _home_of(self.record)

    @property
    def in_between(self) -> str:
        """How the target may be where an exchange has stopped in the middle."""
        return "Its tables may be hidden under other names, and none is lost"

    def discard(self) -> None:
        """Drop what was built and not switched in, and without a mark what was replaced, too."""
        outcome = self._settle()
        if outcome is Outcome.SWITCHED and self.record is not None and not self.request.mark:
            remove(self.db_alias, self.mark, self.schemas)

    def _settle(self) -> Outcome:
        """Bring the exchange to one of its ends in another session: this one may have a transaction open, in which
        its record is half written."""
        self.sessions.close()
        return settle(self.db_alias, self.mark, self.schemas, self.request.report)

    def _record(self) -> Record:
        """Write the record of the exchange; the target is made if it is missing."""
        connection, target = self.connection, self.target
        # Another restore may have begun, and stopped, while this one was built.
        require_finished(connection, self.db_alias, target, self.schemas)
        if MARKER not in tables_in(connection, self.incoming.home):
            raise SnapshotBusyError(
                f"What was to be switched into {self.db_alias!r} is gone: somebody has settled this restore meanwhile."
            )
        with explained(self.db_alias, "could not be read before the switch; it was not touched"):
            if missing := _missing(connection, self.incoming):
                raise SnapshotPreflightError(missing)
            execute(
                connection,
                f"CREATE DATABASE IF NOT EXISTS {quote(target)} CHARACTER SET = {quote(self.incoming.charset)} "
                f"COLLATE = {quote(self.incoming.collation)}",
            )
            self._require_free_names()
            server = without_database(connection, self.db_alias, target)
            # Somebody may have made such since the preflight.
            if found := list(not_to_be_made_again(connection, server)):
                raise SnapshotPreflightError(" ".join(found))
            home = self.schemas.keeping(connection, self.mark, self.incoming.home)
            outgoing = read_side(connection, target, home, self.mark, self.request.preserve_tables)
            self.schemas.make(connection, home, outgoing.charset, outgoing.collation)
            record = Record(
                mark=self.mark,
                target=target,
                about=self.request.about,
                kept_at=datetime.now(UTC).isoformat(),
                preserved=self.request.preserve_tables,
                outgoing=outgoing,
                incoming=self.incoming,
                incoming_is_kept=self.incoming_is_kept,
            )
            create_record(connection, home, record)
        return record

    def _require_free_names(self) -> None:
        """What comes in must not have the name of something that stays: half-way it would be too late to find out."""
        stay = set(self.request.preserve_tables)
        there = {name for name, table in definitions.trigger_tables(self.connection, self.target) if table in stay}
        coming = {item.name for item in self.incoming.definitions if item.kind == "TRIGGER"} & there
        coming |= {*self.incoming.tables, *self.incoming.sequences} & stay
        coming |= {item.name for item in self.incoming.definitions if item.kind == "VIEW"} & stay
        if coming:
            raise SnapshotPreflightError(
                f"What would come into {self.target} has the name of something that must stay there: "
                f"{', '.join(sorted(coming))}. Rename one of them."
            )

    def _after(self, error: Exception) -> SnapshotError | None:
        """Bring the exchange to one of its ends at once; ``None`` if that is the one that was wanted."""
        kind = type(error) if isinstance(error, SnapshotError) else SnapshotConnectorError
        if isinstance(error, DatabaseError) and error.args and error.args[0] in _LOCKED:
            kind = SnapshotBusyError
        said = redact(" ".join(str(item) for item in error.args))
        if self.record is None:
            return kind(f"{self.db_alias!r} could not be switched: {said} It was not touched.")
        try:
            outcome = self._settle()
        except (SnapshotError, DatabaseError, InterfaceError) as second:
            return SnapshotUnsettled(
                f"The switch of {self.db_alias!r} stopped in the middle: {said} {self.in_between}: the record is in "
                f"the schema {self.home}, and the next sweep, or manage.py snapshots sweep, brings it to one of its "
                f"ends. What is in the way of that: {redact(' '.join(str(item) for item in second.args))}"
            )
        if outcome is Outcome.SWITCHED:
            return None
        return kind(f"The switch of {self.db_alias!r} failed: {said} It is as it was before.")


_LOCKED = (1205, 1213)


def _home_of(record: Record | Rows) -> str:
    return record.home if isinstance(record, Rows) else record.outgoing.home


def read_side(connection: BaseDatabaseWrapper, schema: str, home: str, mark: str, preserved: frozenset[str]) -> Side:
    """What *schema* holds, but for the triggers of its tables, as the state that goes to *home*."""
    tables, sequences = own_tables(connection, schema, preserved)
    charset, collation = rows(
        connection,
        "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata "  # noqa: S608
        f"WHERE schema_name = {text(schema)}",
    )[0]
    return Side(
        home=home,
        charset=str(charset),
        collation=str(collation),
        tables=hidden_names(tables, mark, "outgoing"),
        sequences=sequences,
        definitions=definitions.read_target(connection, schema),
        captured=False,
    )


def prepare_restore(
    db_alias: str, source: Source, request: RestoreRequest, client_directory: str | None, schemas: Schemas
) -> MySQLRestore:
    """Prove the dump, look for everything that stands in the way, and load it beside the target."""
    with opened(db_alias, request) as (sessions, connection, marks, mark, target):
        with explained(db_alias, "could not be asked what it holds"):
            server = without_database(connection, db_alias, target)
            require_place(connection, db_alias, server, source, request, schemas)
            client = find_client(server, client_directory, request.processes)
            findings = read_dump(db_alias, source)
            home = schemas.building(connection, mark)
            place = replace(server, database=home) if request.drill else server
            require_restorable(connection, db_alias, place, findings, request.preserve_tables)
            try:
                incoming = Build(
                    db_alias, source, request, server, client, schemas, connection, marks, mark, target, home
                ).run()
            except BaseException:
                with contextlib.suppress(DatabaseError, InterfaceError, SnapshotError):
                    settle(db_alias, mark, schemas)
                raise
        inexact = texts(source.metadata.get("row_counts_inexact_tables"))
        counts = {name: n for name, n in row_counts(source.metadata).items() if name not in inexact}
        return MySQLRestore(
            db_alias=db_alias,
            request=request,
            mark=mark,
            target=target,
            schemas=schemas,
            sessions=sessions,
            connection=connection,
            incoming=incoming,
            counts=counts,
        )


def read_dump(db_alias: str, source: Source) -> Findings:
    """What one pass over the dump shows. Raises ``SnapshotIntegrityError`` if it is not whole."""
    findings = scan(source.open())
    if not findings.complete:
        raise SnapshotIntegrityError(
            f"{source.filename} is not a whole dump: its last line is not {'-- Dump completed'!r}. {db_alias!r} "
            "was not touched."
        )
    return findings


def prepare_undo(db_alias: str, mark: str, request: RestoreRequest, schemas: Schemas) -> MySQLRestore:
    """Prepare to exchange the database with what the restore *mark* has replaced."""
    with opened(db_alias, request) as (sessions, connection, _, own_mark, target):
        with explained(db_alias, "could not be asked what is kept beside it"):
            record = kept(connection, db_alias, target, mark, schemas)
            require_finished(connection, db_alias, target, schemas)
            if isinstance(record, Rows):
                raise SnapshotNotFoundError(f"What {mark} has replaced in {db_alias!r} are the rows of single tables.")
            server = without_database(connection, db_alias, target)
            require_kept(connection, db_alias, server, record.outgoing.definitions)
            found = [item.text for item in strangers(connection, server, request) if item.stops]
            if found := [*filter(None, [_missing(connection, record.outgoing)]), *found]:
                raise SnapshotPreflightError(
                    f"What is kept of {db_alias!r} can't be brought back, and nothing was touched: {' '.join(found)}"
                )
        return MySQLRestore(
            db_alias=db_alias,
            request=request,
            mark=own_mark,
            target=target,
            schemas=schemas,
            sessions=sessions,
            connection=connection,
            incoming=record.outgoing,
            incoming_is_kept=True,
            counts={},
        )


def _missing(connection: BaseDatabaseWrapper, side: Side) -> str:
    """Say what of *side* is not in its schema any more; empty if it is whole."""
    missing = sorted({*side.tables, *side.sequences} - tables_in(connection, side.home).keys())
    if not missing:
        return ""
    return f"Somebody has dropped or renamed {', '.join(missing)} in the schema {side.home}: put that back."


@contextlib.contextmanager
def opened(db_alias: str, request: RestoreRequest) -> Any:
    """The session of one restore, marked; it stays open unless this raises."""
    mark = request.mark or f"once_{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(server_connection(db_alias, database=""))
        with explained(db_alias, "could not be asked about its sessions"):
            target = database_of(db_alias, connection)
            # Before anything else, so that whoever takes over finds it.
            marks = [Marks(connection, label, target) for label in (request.label, mark_label(mark))]
            execute(connection, f"SET SESSION wait_timeout = {LONGEST}, autocommit = 1")
        sessions = contextlib.ExitStack()
        yield sessions, connection, marks, mark, target
        sessions.push(stack.pop_all())


def require_finished(connection: BaseDatabaseWrapper, db_alias: str, target: str, schemas: Schemas) -> None:
    """Raise ``SnapshotBusyError`` while an exchange of *target* has stopped in the middle."""
    found = unfinished(connection, target, schemas)
    if said := halfway(db_alias, target, found, tables_in(connection, target)):
        raise SnapshotBusyError(f"{said} Then try again.")


@dataclass(frozen=True)
class Build:
    """Builds the state of a dump in a schema of its own."""

    db_alias: str
    source: Source
    request: RestoreRequest
    server: Server
    client: Client
    schemas: Schemas
    connection: BaseDatabaseWrapper
    marks: list[Marks]
    mark: str
    target: str
    home: str

    def run(self) -> Side:
        """Load the dump, read its definitions, and mark the schema as complete."""
        charset, collation = self.begin()
        rehearsal = Rehearsal(self.home)
        self.load(rehearsal(self.source.open()))
        side = self._side(charset, collation, rehearsal)
        execute(self.connection, f"CREATE TABLE {quote(self.home)}.{MARKER} (here INTEGER) ENGINE = InnoDB")
        return side

    def begin(self) -> tuple[str, str]:
        """Make the schema, which says whose it is; return its character set and collation."""
        require_finished(self.connection, self.db_alias, self.target, self.schemas)
        charset, collation = self._collation()
        self.schemas.make(self.connection, self.home, charset, collation)
        create_record(
            self.connection, self.home, Label(mark=self.mark, target=self.target, about=dict(self.request.about))
        )
        return charset, collation

    def _collation(self) -> tuple[str, str]:
        said = self.source.metadata.get("charset"), self.source.metadata.get("collation")
        if all(said):
            return str(said[0]), str(said[1])
        there = rows(
            self.connection,
            "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata "  # noqa: S608
            f"WHERE schema_name = {text(self.target)}",
        ) or rows(self.connection, "SELECT @@character_set_server, @@collation_server")
        return str(there[0][0]), str(there[0][1])

    def load(self, statements: Iterator[bytes]) -> None:
        """Run them in the schema."""
        options = connection_options(
            self.connection.get_connection_params(), oracle=self.client.oracle, encrypted=self.server.encrypted
        )
        with self.request.temporary_directory() as directory:
            Loader(
                db_alias=self.db_alias,
                server=self.server,
                client=self.client,
                processes=self.request.processes,
                schema=self.home,
                option_file=write_option_file(directory, options),
                secrets=secrets_in(options),
                said=directory / "said",
                marks=self.marks,
                # One that connects late finds another restore's in a schema that was given, and no session to end it.
                precondition=still_building(self.home, self.mark),
            ).run(statements)

    def _side(self, charset: str, collation: str, rehearsal: Rehearsal) -> Side:
        tables, sequences = own_tables(self.connection, self.home)
        hidden = hidden_names(tables, self.mark, "incoming")
        found = [_as_dumped(item, rehearsal) for item in definitions.read_definitions(self.connection, self.home)]
        return Side(
            home=self.home,
            charset=charset,
            collation=collation,
            tables=hidden,
            sequences=sequences,
            defaults=self._defaults(hidden),
            definitions=[*found, *self._triggers(hidden)],
        )

    def _triggers(self, hidden: Mapping[str, str]) -> list[Definition]:
        """The triggers as they are once their tables are hidden; the server itself puts that name into the text."""
        those = sorted({table for _, table in definitions.trigger_tables(self.connection, self.home)})
        home = quote(self.home)
        there = ", ".join(f"{home}.{quote(name)} TO {home}.{quote(hidden[name])}" for name in those)
        back = ", ".join(f"{home}.{quote(hidden[name])} TO {home}.{quote(name)}" for name in those)
        if not those:
            return []
        execute(self.connection, "SET SESSION foreign_key_checks = 0")
        execute(self.connection, f"RENAME TABLE {there}")
        found = definitions.read_triggers(self.connection, self.home, [hidden[name] for name in those])
        execute(self.connection, f"RENAME TABLE {back}")
        return found

    def _defaults(self, hidden: Mapping[str, str]) -> list[tuple[str, str, str]]:
        found = rows(
            self.connection,
            "SELECT table_name, column_name, column_default FROM information_schema.columns "  # noqa: S608 - hex
            f"WHERE table_schema = {text(self.home)} AND column_default LIKE '%nextval(%'",
        )
        here, there = f"nextval({quote(self.home)}.", f"nextval({quote(self.target)}."
        return [
            (hidden[str(table)], str(column), f"({str(default).replace(here, there)})")
            for table, column, default in found
            if here in str(default)
        ]


def _as_dumped(item: Definition, rehearsal: Rehearsal) -> Definition:
    return replace(item, text=enabled(item.text)) if item.kind == "EVENT" and item.name in rehearsal.enabled else item
