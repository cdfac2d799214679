"""The tables of a SQLite database whose rows are replaced alone: what they are, and why one can't be."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from django_snapshots.connectors.single_tables import columns, refusals
from django_snapshots.connectors.sqlite_files import Place, quoted
from django_snapshots.exceptions import SnapshotPreflightError

LIVE = "main"
RESTORED = "restored"
"""The schema that the snapshot's file, or what was kept, is attached as."""
VIRTUAL = "a virtual table"
_SHADOWS = (
    "content", "data", "idx", "docsize", "config", "segments", "segdir", "stat", "node", "parent", "rowid",
)  # fmt: skip
"""How the tables end that full text and range indexes keep their own state in, on a SQLite that doesn't tell."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a table's rows are made of."""

    columns: Mapping[str, str]
    """Declared types by name, in upper case; generated columns are computed and not among them."""
    rowid: str | None
    """A name for the number of a row that is in none of the columns; ``None`` if there is no such number."""
    counted: bool
    """Whether the table never gives a number twice (AUTOINCREMENT)."""

    @property
    def names(self) -> list[str]:
        """What is copied."""
        return [*([self.rowid] if self.rowid else []), *self.columns]


def shape(connection: sqlite3.Connection, schema: str, table: str) -> Shape:
    """The shape of a table that is there."""
    found = connection.execute(f"PRAGMA {schema}.table_xinfo({quoted(table)})").fetchall()
    own = {str(row[1]): str(row[2]).upper() for row in found if row[6] == 0}
    keys = [str(row[2]).upper() for row in found if row[5]]
    sql = definition(connection, schema, table)
    has_number = _has_rowid(connection, schema, table, {str(row[1]).casefold() for row in found})
    return Shape(columns=own, rowid=None if keys == ["INTEGER"] else has_number, counted="AUTOINCREMENT" in sql.upper())


def definition(connection: sqlite3.Connection, schema: str, table: str) -> str:
    """The text that made the table."""
    find = f"SELECT sql FROM {schema}.sqlite_master WHERE type = 'table' AND name = ?"  # noqa: S608 - a constant
    return str(connection.execute(find, [table]).fetchone()[0])


def _has_rowid(connection: sqlite3.Connection, schema: str, table: str, columns: set[str]) -> str | None:
    """A name of the row's number that no column has; ``None`` WITHOUT ROWID, or where columns hide all of them."""
    for name in ("rowid", "_rowid_", "oid"):
        if name not in columns:
            try:
                connection.execute(f"SELECT {name} FROM {schema}.{quoted(table)} LIMIT 0")  # noqa: S608 - quoted
            except sqlite3.OperationalError:
                return None
            return name
    return None


def require(place: Place, connection: sqlite3.Connection, tables: Iterable[str], journal: Collection[str]) -> None:
    """Raise ``SnapshotPreflightError`` unless the rows of *tables* can be replaced by those of the attached file."""
    if found := list(_problems(place.alias, connection, frozenset(tables), journal)):
        raise SnapshotPreflightError(f"{place.title} was not touched. {' '.join(found)}")


def _problems(
    alias: str, connection: sqlite3.Connection, tables: Collection[str], journal: Collection[str]
) -> Iterator[str]:
    then = [name for name, kind in kinds(connection, RESTORED).items() if not kind]
    now = kinds(connection, LIVE)
    yield from refusals(alias, tables, journal=journal, here=now, there=then)
    for table in sorted(tables):
        if now.get(table) == "" and table in then and table not in journal:
            yield from _differences(alias, connection, table)


def kinds(connection: sqlite3.Connection, schema: str) -> dict[str, str]:
    """What each name in *schema* is, in words; empty for a table with rows of its own."""
    found = {
        str(name): "a view" if kind == "view" else "" if page else VIRTUAL
        for kind, name, page in connection.execute(
            f"SELECT type, name, rootpage FROM {schema}.sqlite_master "  # noqa: S608 - a constant
            "WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'"
        )
    }
    for name in _shadows(connection, schema, found):
        found[name] = "what a virtual table keeps its own state in"
    return found


def _shadows(connection: sqlite3.Connection, schema: str, found: Mapping[str, str]) -> set[str]:
    """The tables in which virtual ones keep their own state."""
    listed = connection.execute(f"PRAGMA {schema}.table_list").fetchall()
    if listed:
        return {str(row[1]) for row in listed if row[0] == schema and row[2] == "shadow"} & set(found)
    virtual = [name for name, kind in found.items() if kind == VIRTUAL]
    return {f"{name}_{end}" for name in virtual for end in _SHADOWS} & set(found)


def _differences(alias: str, connection: sqlite3.Connection, table: str) -> Iterator[str]:
    now, then = (shape(connection, schema, table) for schema in (LIVE, RESTORED))
    if changed := columns(alias, table, then.columns, now.columns):
        yield changed
    elif now.rowid != then.rowid:
        yield f"The rows of {table} of {alias!r} have a number of their own (rowid) only here, or only in the snapshot."


def triggers(connection: sqlite3.Connection, table: str) -> list[tuple[str, str]]:
    """Names and texts of the triggers of *table* in the live database, in the order in which they were made."""
    found = connection.execute(
        f"SELECT name, sql FROM {LIVE}.sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE "  # noqa: S608
        "ORDER BY rowid",
        [table],
    )
    return [(str(name), str(sql)) for name, sql in found]


def children(connection: sqlite3.Connection, tables: Iterable[str]) -> list[str]:
    """Those of the live tables whose foreign keys have to be looked at when rows of *tables* change."""
    folded = {table.casefold() for table in tables}
    everything = [name for name, kind in kinds(connection, LIVE).items() if kind not in ("a view", VIRTUAL)]
    return [
        name
        for name in sorted(everything)
        if any(
            name.casefold() in folded or str(key[2]).casefold() in folded
            for key in connection.execute(f"PRAGMA {LIVE}.foreign_key_list({quoted(name)})")
        )
    ]


def sequence(connection: sqlite3.Connection, schema: str, table: str) -> int | None:
    """The highest number that *table* ever gave, where SQLite keeps it."""
    if not connection.execute(f"SELECT 1 FROM {schema}.sqlite_master WHERE name = 'sqlite_sequence'").fetchone():  # noqa: S608
        return None
    row = connection.execute(f"SELECT seq FROM {schema}.sqlite_sequence WHERE name = ?", [table]).fetchone()  # noqa: S608
    return int(row[0]) if row and row[0] is not None else None
