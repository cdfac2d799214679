"""Carries the preserved tables from one database into another: what they are, then the rows that they have."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.access import access
from django_snapshots.connectors.postgres.clients import Clients
from django_snapshots.connectors.postgres.maintenance import execute
from django_snapshots.connectors.postgres.preamble import without_unknown_settings
from django_snapshots.connectors.postgres.quoting import identifier, literal
from django_snapshots.connectors.postgres.session import Session
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConnectorError
from django_snapshots.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Carried:
    """One table, as a database has it."""

    name: str
    """Quoted, with its schema."""
    columns: tuple[str, ...]
    """Quoted; those that hold a value of their own."""
    shape: str
    """Names and types of the columns, to see whether two databases have the same table."""
    sequences: tuple[str, ...]
    """Quoted; those that belong to its columns."""
    needs: frozenset[str]
    """Other tables that its foreign keys lead to, quoted."""

    @classmethod
    def find(cls, connection: BaseDatabaseWrapper, names: Iterable[str]) -> dict[str, Self]:
        """Those of the tables *names*, without schema, that Django finds in *connection*."""
        return cls.named(connection, catalog.find_tables(connection, names).values())

    @classmethod
    def named(cls, connection: BaseDatabaseWrapper, names: Iterable[str]) -> dict[str, Self]:
        """Those of the tables *names*, quoted with their schema, that there are."""
        sql = """
            SELECT format('%%I.%%I', n.nspname, c.relname),
                (SELECT json_agg(quote_ident(attname) ORDER BY attnum) FILTER (WHERE attgenerated = '')
                 FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
                (SELECT json_agg((attname, format_type(atttypid, atttypmod), attgenerated, attnotnull) ORDER BY attname)
                 FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)::text,
                (SELECT json_agg(format('%%I.%%I', m.nspname, r.relname)) FROM pg_constraint k
                 JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace m ON m.oid = r.relnamespace
                 WHERE k.conrelid = c.oid AND k.contype = 'f' AND r.oid <> c.oid),
                c.oid
            FROM unnest(%s::text[]) AS wanted JOIN pg_class c ON c.oid = to_regclass(wanted)
            JOIN pg_namespace n ON n.oid = c.relnamespace
        """
        found = {}
        for name, columns, shape, needs, number in catalog.rows(connection, sql, [sorted(names)]):
            found[name] = cls(
                name=name,
                columns=tuple(catalog.decoded(columns) or ()),
                shape=shape or "",
                sequences=tuple(sorted(catalog.owned_sequences(connection, [number]).values())),
                needs=frozenset(catalog.decoded(needs) or ()),
            )
        return found

    @staticmethod
    def copy(origin: BaseDatabaseWrapper, goal: BaseDatabaseWrapper, tables: Mapping[str, Carried]) -> None:
        """Make the *tables* of *goal* hold the rows that those of *origin* have, and the sequences go on from there.

        Raises ``django.db.Error``.
        """
        if not tables:
            return
        execute(goal, f"TRUNCATE {', '.join(sorted(tables))}")
        for table in _in_order(tables):
            columns = ", ".join(table.columns)
            # These cursors are the driver's own, and so is what they raise, on either side.
            with (
                origin.wrap_database_errors,
                origin.connection.cursor() as source,
                goal.connection.cursor() as sink,
                source.copy(f"COPY (SELECT {columns} FROM {table.name}) TO STDOUT (FORMAT binary)") as rows,  # noqa: S608
                sink.copy(f"COPY {table.name} ({columns}) FROM STDIN (FORMAT binary)") as copy,
            ):
                for chunk in rows:
                    copy.write(chunk)
            for sequence in table.sequences:
                ((value, called),) = catalog.rows(origin, f"SELECT last_value, is_called FROM {sequence}")  # noqa: S608
                execute(goal, "SELECT setval(%s::regclass, %s, %s)", [sequence, value, called])


def _in_order(tables: Mapping[str, Carried]) -> list[Carried]:
    """A table after those that its foreign keys lead to; in a circle, in any order."""
    ordered: dict[str, Carried] = {}
    while left := [table for name, table in sorted(tables.items()) if name not in ordered]:
        ready = [table for table in left if not (table.needs & tables.keys() - ordered.keys())] or left
        ordered |= {table.name: table for table in ready}
    return list(ordered.values())


def define(
    alias: str,
    processes: Processes,
    clients: Clients,
    origin: BaseDatabaseWrapper,
    goal: BaseDatabaseWrapper,
    tables: Mapping[str, Carried],
    label: str,
) -> None:
    """Make *tables* of *origin*, empty, in the database of *goal*, in place of what is called like them there."""
    if not tables:
        return
    script = _script(alias, processes, clients, origin, tables, label)
    known = {name for (name,) in catalog.rows(goal, "SELECT name FROM pg_settings")}
    reached = access(goal, label)
    session = Session(alias, processes, clients, reached)
    try:
        session.ask("\\encoding UTF8\nBEGIN;")
        if reached.role:
            session.ask(f"SET LOCAL ROLE {identifier(reached.role)};")
        for name in sorted(tables):
            schema = identifier(catalog.split_name(name)[0])
            session.ask(f"SELECT 'CREATE SCHEMA {schema}' WHERE to_regnamespace({literal(schema)}) IS NULL \\gexec")
        session.ask(f"DROP TABLE IF EXISTS {', '.join(sorted(tables))};")
        session.write(b"".join(without_unknown_settings(iter([script]), known)))
        session.ask("COMMIT;")
        session.close()
    finally:
        session.end()


def _script(
    alias: str,
    processes: Processes,
    clients: Clients,
    origin: BaseDatabaseWrapper,
    tables: Mapping[str, Carried],
    label: str,
) -> bytes:
    reached = access(origin, label)
    argv: list[str] = [
        str(clients.program("pg_dump")),
        "--schema-only",
        "--no-password",
        "--encoding=UTF8",
        *([f"--role={reached.role}"] if reached.role else []),
        *(f"--table={catalog.pattern(name)}" for name in sorted(tables)),
        f"--dbname={reached.conninfo}",
    ]
    with processes.start(argv, stdin=subprocess.DEVNULL, env=reached.env, secrets=reached.secrets) as tool:
        script = b"".join(tool.chunks())
        if tool.wait() != 0:
            if processes.ended:
                raise SnapshotCancelled(f"The restore of {alias!r} was ended.")
            raise SnapshotConnectorError(
                f"The tables {', '.join(sorted(tables))} of {alias!r} could not be carried over: {tool.explain()}. "
                "Nothing was changed."
            )
    return script
