"""The schemas that restores have left beside a database: what they are, how they end, how they go."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql import definitions
from django_snapshots.connectors.mysql.exchange import LOCK_WAIT, Exchange, own_tables
from django_snapshots.connectors.mysql.record import (
    HIDDEN_PREFIX,
    MARKER,
    NEW_PREFIX,
    OLD_PREFIX,
    RECORD,
    Label,
    NotUnderstood,
    Record,
    Rows,
    create_record,
    is_free,
    read_record,
    record_table,
    require_mark,
    schema_names,
    tables_in,
    text,
)
from django_snapshots.connectors.mysql.server import (
    LOCKED_IDLE,
    LONGEST,
    execute,
    explained,
    quote,
    rows,
    server_connection,
    value,
)
from django_snapshots.connectors.mysql.sessions import Marks, end_sessions, prefix
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotNotFoundError,
)
from django_snapshots.redaction import redact
from django_snapshots.replaced import Beside, Outcome

logger = logging.getLogger("django_snapshots")

_TURN_WAIT = 10


@dataclass(frozen=True, kw_only=True)
class Schemas:
    """Where restores build and keep: schemas that they make, or two that an administrator has made."""

    given: tuple[str, ...] = ()

    def building(self, connection: BaseDatabaseWrapper, mark: str) -> str:
        """Where the restore *mark* builds."""
        return f"{NEW_PREFIX}{require_mark(mark)}" if not self.given else self._free(self._empty(connection))

    def keeping(self, connection: BaseDatabaseWrapper, mark: str, building: str) -> str:
        """Where the restore *mark* keeps what it replaces; another one than *building*."""
        if not self.given:
            return f"{OLD_PREFIX}{require_mark(mark)}"
        return self._free([name for name in self._empty(connection) if name != building])

    def make(self, connection: BaseDatabaseWrapper, name: str, charset: str, collation: str) -> None:
        """Make a schema that isn't there yet; one that was given only gets its collation."""
        verb = "ALTER" if name in self.given else "CREATE"
        execute(
            connection, f"{verb} DATABASE {quote(name)} CHARACTER SET = {quote(charset)} COLLATE = {quote(collation)}"
        )

    def unmake(self, connection: BaseDatabaseWrapper, name: str) -> None:
        """Drop a schema, or what is in one that was given; its marker first, so that half of it is never taken for
        a state."""
        # Who has a transaction open in it would be waited for, in our turn, for a day.
        execute(connection, f"SET SESSION foreign_key_checks = 0, sql_mode = '', lock_wait_timeout = {LOCK_WAIT}")
        if name not in schema_names(connection, self.given):
            return
        # Half of it is nothing that an exchange has left: whoever settles the mark next drops the rest. A disk that is
        # full keeps nobody from making room.
        with contextlib.suppress(NotUnderstood, DatabaseError):
            content = read_record(connection, name)
            if isinstance(content, Record | Rows):
                create_record(connection, name, Label(mark=content.mark, target=content.target, about=content.about))
        execute(connection, f"DROP TABLE IF EXISTS {quote(name)}.{MARKER}")
        if name not in self.given:
            execute(connection, f"DROP DATABASE IF EXISTS {quote(name)}")
            return
        definitions.drop_events(connection, name, definitions.event_names(connection, name))
        definitions.drop_views_and_routines(connection, name)
        found = tables_in(connection, name)
        # The record goes last: until then whoever comes knows whose the rest is.
        for table in sorted(found, key=lambda table: table == RECORD):
            what = "SEQUENCE" if found[table] == "SEQUENCE" else "TABLE"
            execute(connection, f"DROP {what} {quote(name)}.{quote(table)}")

    def read(
        self, connection: BaseDatabaseWrapper
    ) -> Iterator[tuple[str, Record | Rows | Label | NotUnderstood | None]]:
        """Every such schema that is there, and what it says of itself, or why that can't be understood."""
        for name in schema_names(connection, self.given):
            try:
                yield name, read_record(connection, name)
            except NotUnderstood as error:
                yield name, error

    def found(self, connection: BaseDatabaseWrapper, mark: str = "") -> list[tuple[str, Record | Rows | Label | None]]:
        """As ``read``, but for those whose record can't be understood.

        Raises ``NotUnderstood`` where that is one that was given or that carries *mark*.
        """
        found = []
        for name, content in self.read(connection):
            if not isinstance(content, NotUnderstood):
                found.append((name, content))
            elif name in self.given or _mark_of(name) == mark:
                raise content
        return found

    def _free(self, empty: Sequence[str]) -> str:
        if not empty:
            raise SnapshotBusyError(
                f"None of the schemas {', '.join(self.given)}, which the connector was given, is free: each holds what "
                "a restore has built or replaced. `manage.py snapshots undo --list` shows what is kept; remove what "
                "nobody needs, or wait until it expires."
            )
        return empty[0]

    def _empty(self, connection: BaseDatabaseWrapper) -> list[str]:
        there = schema_names(connection, self.given)
        for name in self.given:
            if name not in there:
                raise SnapshotConnectorError(f"The schema {name}, which the connector was given, does not exist.")
        return [name for name in self.given if is_free(connection, name)]


def mark_label(mark: str) -> str:
    """What the sessions of a restore carry beside the label of their attempt."""
    return f"mark {mark}"


def hidden_names(names: Sequence[str], mark: str, side: str) -> dict[str, str]:
    """For each table a name that no other table has."""
    digest = hashlib.sha256(f"{mark}\0{side}".encode()).hexdigest()[:12]
    return {name: f"{HIDDEN_PREFIX}{digest}_{number}" for number, name in enumerate(names)}


def database_of(alias: str, connection: BaseDatabaseWrapper) -> str:
    """The name of the database of *alias* as the server stores it; the database need not be there."""
    current, lower = rows(connection, "SELECT DATABASE(), @@lower_case_table_names = 1")[0]
    name = str(connections[alias].settings_dict["NAME"] or current or "")
    return name.lower() if lower else name


@contextlib.contextmanager
def serving(alias: str, what: str) -> Iterator[tuple[BaseDatabaseWrapper, str]]:
    """A connection to the server of *alias*, in no database, and the name of the alias's one."""
    with server_connection(alias, database="") as connection, explained(alias, what):
        yield connection, database_of(alias, connection)


def beside(alias: str, schemas: Schemas) -> list[Beside]:
    """Everything that restores have left beside the database of *alias*, the newest first.

    Raises ``SnapshotConnectorError`` where the server is away.
    """
    with serving(alias, "could not be asked what restores have left") as (connection, target):
        found = [
            _beside(connection, target, name, content)
            for name, content in schemas.read(connection)
            # Where even that can't be read, the target may be this one.
            if content is None or content.target in (target, *([""] if isinstance(content, NotUnderstood) else []))
        ]
    newest = [item for item in found if item is not None]
    return sorted(newest, key=lambda item: (item.kept_at is not None, item.kept_at or 0, item.mark), reverse=True)


def _beside(
    connection: BaseDatabaseWrapper, target: str, name: str, content: Record | Rows | Label | NotUnderstood | None
) -> Beside | None:
    mark, place = _mark_of(name), f'schema "{name}"'
    if isinstance(content, NotUnderstood):
        return Beside(mark=mark, kept=False, place=place, in_use=_in_use(connection, mark, target), unseen=str(content))
    if content is None and mark == name:
        return None
    mark = content.mark if content else mark
    kept = _is_kept(connection, name, content)
    return Beside(
        mark=mark,
        kept=kept,
        place=place,
        about=content.about if content else {},
        kept_at=datetime.fromisoformat(content.kept_at) if kept and isinstance(content, Record | Rows) else None,
        in_use=_in_use(connection, mark, target),
    )


def _is_kept(connection: BaseDatabaseWrapper, name: str, content: Record | Rows | Label | None) -> bool:
    if isinstance(content, Rows):
        return content.done and content.home == name
    whole = isinstance(content, Record) and content.done and content.outgoing.home == name
    return whole and MARKER in tables_in(connection, name)


def _in_use(connection: BaseDatabaseWrapper, mark: str, target: str) -> bool:
    lock = f"CONCAT({text(prefix(mark_label(mark), target))}, id)"
    return bool(
        value(connection, f"SELECT COUNT(*) FROM information_schema.processlist WHERE IS_USED_LOCK({lock}) IS NOT NULL")  # noqa: S608
    )


def report_lost(exchange: Exchange, alias: str, report: Callable[[str], object], *, forward: bool) -> None:
    """Tell of each trigger and view that is not in the target any more, and of rights on its routines."""
    for item, said in exchange.lost:
        if item.kind.startswith(definitions.GRANT):
            report(
                f"A right on the {item.kind.removeprefix(definitions.GRANT).lower()} {item.name} of {alias!r} could "
                f"not be given again: {said}. Let an administrator run: {item.text.decode()};"
            )
            continue
        where = (
            f"Its text is in the table {record_table(exchange.record.outgoing.home)}, as long as that schema is kept."
            if forward
            # The record goes.
            else f"Its text was: {redact(item.text.decode(errors='replace'))}"
        )
        report(
            f"The {item.kind.lower()} {item.name} of {alias!r} could not be made again, because what it stands on is "
            f"gone, or the account may not read it: {said}. {where}"
        )


def settle(alias: str, mark: str, schemas: Schemas, report: Callable[[str], object] = logger.warning) -> Outcome:
    """End the sessions of *mark*, bring its exchange to one of its ends, drop what is left over. What is lost by that
    is told to *report*."""
    require_mark(mark)
    end_sessions(alias, [mark_label(mark)])
    with serving(alias, f"could not be settled after the restore {mark}") as (connection, target):
        # Whoever settles it next ends this session too: it may sleep, or be cut off, with the tables hidden.
        Marks(connection, mark_label(mark), target)
        return _conclude(connection, alias, target, mark, schemas, report)


def _conclude(
    connection: BaseDatabaseWrapper,
    alias: str,
    target: str,
    mark: str,
    schemas: Schemas,
    report: Callable[[str], object],
) -> Outcome:
    """Bring the exchange *mark* to one of its ends in this session, and drop what is left over."""
    with turn(connection, alias, target):
        record = find(connection, mark, target, schemas)
        if record is None:
            _sweep(connection, target, mark, schemas)
            return Outcome.BEFORE
        if isinstance(record, Rows):
            return _conclude_rows(connection, record, schemas)
        exchange = Exchange(connection, record)
        forward = exchange.moved() if record.done else exchange.settle()
        report_lost(exchange, alias, report, forward=forward)
        # A schema that was given may hold another restore's by now.
        built_here = _mark_in(connection, record.incoming.home) == mark
        if forward or (built_here and not record.incoming_is_kept):
            unmake_left_over(connection, record.incoming.home, schemas, whole=not forward)
        if not forward:
            unmake_left_over(connection, record.outgoing.home, schemas, whole=False)
        return Outcome.SWITCHED if forward else Outcome.BEFORE


def _conclude_rows(connection: BaseDatabaseWrapper, record: Rows, schemas: Schemas) -> Outcome:
    """One transaction, whose record says whether it took place; what is left over goes."""
    if not record.done:
        _sweep(connection, record.target, record.mark, schemas)
        return Outcome.BEFORE
    left = read_record(connection, record.origin)
    # A schema that was given may hold another restore's by now; one that was kept is in the target since.
    built = isinstance(left, Label) and left.mark == record.mark
    brought_back = record.origin_is_kept and isinstance(left, Rows) and not left.done and left.mark != record.mark
    if built or brought_back:
        schemas.unmake(connection, record.origin)
    return Outcome.SWITCHED


def find(connection: BaseDatabaseWrapper, mark: str, target: str, schemas: Schemas) -> Record | Rows | None:
    """The record of the exchange *mark* of *target*, if it was committed."""
    for _, content in schemas.found(connection, mark):
        if isinstance(content, Record | Rows) and (content.mark, content.target) == (mark, target):
            return content
    return None


def unfinished(connection: BaseDatabaseWrapper, target: str, schemas: Schemas) -> Record | NotUnderstood | None:
    """An exchange of *target* that has stopped in the middle, if there is one, or what may be one."""
    for name, content in schemas.read(connection):
        if isinstance(content, NotUnderstood):
            if content.halfway and (content.target == target or (not content.target and name in schemas.given)):
                return content
            if not content.target:
                # It must not stop everybody on the server: most likely it is another project's.
                logger.warning("%s It does not say which database it is of.", content)
        elif isinstance(content, Record) and content.target == target and not content.done:
            return content
    return None


def halfway(alias: str, target: str, found: Record | NotUnderstood | None, tables: Iterable[str]) -> str:
    """What is said of a *target* with these *tables* in which an exchange has stopped in the middle, as ``unfinished``
    has *found* it; empty if it is whole."""
    if isinstance(found, NotUnderstood):
        return f"A restore of {alias!r} may have stopped in the middle. {found}"
    if found is not None:
        return (
            f"The restore {found.mark} of {alias!r} has stopped in the middle and is not settled yet; the next sweep, "
            "or manage.py snapshots sweep, does that."
        )
    if any(name.startswith(HIDDEN_PREFIX) for name in tables):
        return (
            f"A restore of {alias!r} has stopped in the middle: {target} has tables whose names begin with "
            f"{HIDDEN_PREFIX}, and no record of them is seen. Run manage.py snapshots sweep with the account that "
            "restores; if the record is gone, rename or drop these tables by hand."
        )
    return ""


def require_whole(
    connection: BaseDatabaseWrapper, alias: str, target: str, tables: Sequence[str], schemas: Schemas
) -> None:
    """Raise ``SnapshotBusyError`` where an exchange has stopped in the middle of *target*, which has these *tables*:
    they may be hidden then, and views and events missing."""
    found = None
    # The account need not see these schemas to dump.
    with contextlib.suppress(DatabaseError):
        found = unfinished(connection, target, schemas)
    if said := halfway(alias, target, found, tables):
        raise SnapshotBusyError(f"{said} It was not dumped. Then try again.")


def kept(connection: BaseDatabaseWrapper, alias: str, target: str, mark: str, schemas: Schemas) -> Record | Rows:
    """The record of a kept state that is whole. Raises ``SnapshotNotFoundError``."""
    record = find(connection, mark, target, schemas)
    home = record.home if isinstance(record, Rows) else record.outgoing.home if record else ""
    if record is None or not _is_kept(connection, home, record):
        raise SnapshotNotFoundError(
            f"Nothing is kept of what the restore {mark} has replaced in {alias!r}: it was removed, or brought back."
        )
    return record


def remove(alias: str, mark: str, schemas: Schemas) -> None:
    """Drop what carries *mark* beside the database of *alias*; never the database itself."""
    require_mark(mark)
    what = f"could not be freed of what the restore {mark} has left"
    with serving(alias, what) as (connection, target), turn(connection, alias, target):
        record = unfinished(connection, target, schemas)
        if isinstance(record, NotUnderstood):
            raise SnapshotConnectorError(
                f"{halfway(alias, target, record, ())} Until that is settled nothing is removed."
            )
        if record is not None and mark in (record.mark, _mark_in(connection, record.incoming.home)):
            raise SnapshotBusyError(
                f"The restore {record.mark} of {alias!r} has stopped in the middle, and {mark} holds a part of it; it "
                "must be settled first."
            )
        _sweep(connection, target, mark, schemas)


def _mark_in(connection: BaseDatabaseWrapper, schema: str) -> str:
    content = read_record(connection, schema)
    return content.mark if content else ""


def _sweep(connection: BaseDatabaseWrapper, target: str, mark: str, schemas: Schemas) -> None:
    for name, content in schemas.found(connection, mark):
        owner = (content.mark, content.target) if content else (_mark_of(name), target)
        if owner == (mark, target) and name != target:
            schemas.unmake(connection, name)


def _mark_of(name: str) -> str:
    return name.removeprefix(NEW_PREFIX).removeprefix(OLD_PREFIX)


def unmake_left_over(connection: BaseDatabaseWrapper, name: str, schemas: Schemas, *, whole: bool) -> None:
    """Drop a schema that an exchange has emptied, or *whole*; what should be empty and isn't, stays."""
    if name not in schema_names(connection, schemas.given):
        return
    tables, _ = own_tables(connection, name)
    if whole or not (tables or MARKER in tables_in(connection, name)):
        schemas.unmake(connection, name)
        return
    raise SnapshotConnectorError(
        f"The schema {name} should hold nothing any more, and holds {', '.join(tables[:5])}; it was not dropped. Look "
        "at it, and drop it if nobody needs that."
    )


@contextlib.contextmanager
def turn(connection: BaseDatabaseWrapper, alias: str, target: str) -> Iterator[None]:
    """Only one session at a time works on what lies beside *target*; the server ends one whose process sleeps."""
    lock = text(f"django-snapshots turn {hashlib.sha256(target.encode()).hexdigest()[:24]}")
    # Before the lock: whoever sleeps while it waits for that may get it.
    execute(connection, f"SET SESSION wait_timeout = {LOCKED_IDLE}")
    try:
        if not value(connection, f"SELECT GET_LOCK({lock}, {_TURN_WAIT})"):
            raise SnapshotBusyError(
                f"Another process works on what restores have left beside {alias!r}; try again later."
            )
        yield
    finally:
        with contextlib.suppress(DatabaseError):
            rows(connection, f"SELECT RELEASE_LOCK({lock})")
            execute(connection, f"SET SESSION wait_timeout = {LONGEST}")
