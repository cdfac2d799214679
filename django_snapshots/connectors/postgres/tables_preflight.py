"""What stands in the way of a restore of single tables, and what of the archive is theirs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import single_tables
from django_snapshots.connectors.postgres import catalog, preflight
from django_snapshots.connectors.postgres.access import connected
from django_snapshots.connectors.postgres.archive import read_contents
from django_snapshots.connectors.postgres.catalog import split_name
from django_snapshots.connectors.postgres.parts import Parts, Table, find
from django_snapshots.connectors.postgres.preflight import Survey
from django_snapshots.connectors.postgres.toc import Contents, Item
from django_snapshots.exceptions import SnapshotError
from django_snapshots.transfer import RestoreRequest, Source

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table, whose rows are another server's",
    "S": "a sequence",
    "c": "a type",
}
_WAITING = (
    "While they are restored, who writes to these tables waits; a transaction that has written there and is not ended "
    "for a minute makes the restore fail."
)
_COPY = re.compile(r'COPY (?P<name>(?:"(?:[^"]|"")*"|[^" ])+)(?: \((?P<columns>.*)\))? FROM stdin;\s*', re.DOTALL)
_COLUMN = re.compile(r'"((?:[^"]|"")*)"|([^", ]+)')
# pg_dump writes a column as name, type, and then what else there is to say of it (pg_dump.c, dumpTableSchema).
_REST = r"(?=,?$| (?:COLLATE|DEFAULT|GENERATED|NOT NULL|CONSTRAINT|WITH OPTIONS) ?)"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The rows of one table in the archive."""

    number: int
    """What ``pg_restore`` calls them."""
    copy: str
    definition: str

    def columns(self, now: Mapping[str, str]) -> dict[str, str]:
        """The columns that have values in it, and their types; that of a column which is inherited, and so not said, is
        what it is *now*."""
        match = _COPY.fullmatch(self.copy)
        names = [item[0] for item in _COLUMN.finditer((match and match["columns"]) or "")]
        return {_plain(name): self._type(name, now.get(_plain(name))) for name in names}

    def through(self, name: str) -> str:
        """The quoted name of the table that takes these rows, if that isn't *name*; else it is empty."""
        match = _COPY.fullmatch(self.copy)
        return match["name"] if match and split_name(match["name"]) != split_name(name) else ""

    def _type(self, name: str, now: str | None) -> str:
        line = re.search(rf"^    {re.escape(name)} (.*)$", self.definition, re.MULTILINE)
        if line is None:
            return now or "inherited"
        if now is not None and re.match(re.escape(now) + _REST, line[1]):
            return now
        return re.split(r" (?:COLLATE|DEFAULT|GENERATED|NOT NULL|CONSTRAINT)\b", line[1].removesuffix(","))[0]


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


@dataclass(kw_only=True)
class TablesSurvey(Survey):
    """All that was found, and what the restore needs of it."""

    parts: Parts | None = None
    stored: Mapping[str, Stored] | None = None
    """By the quoted name with its schema, in the archive's order."""


def survey(
    alias: str, source: Source, request: RestoreRequest, *, missing: bool, client_directory: str | None
) -> TablesSurvey:
    """Look at the dump and the target."""
    found = TablesSurvey()
    found.stop(preflight.engine(alias, source))
    if missing:
        found.stop([f"The alias {alias!r} has no database, so it has no tables whose rows could be replaced."])
    if found.findings:
        return found
    try:
        found.contents = read_contents(alias, source, request.processes, client_directory)
        items = _items(source)
    except SnapshotError as error:
        found.failure = error
        found.stop([str(error)])
        return found
    if items is None:
        found.stop(
            [
                f"The form of {source.filename} is newer than this django-snapshots, which can't find single tables in "
                "it. Restore the whole, or restore it into a database of another name and copy the rows from there."
            ]
        )
        return found
    with connected(alias) as connection:
        _look(found, connection, alias, request, items)
    return found


def _items(source: Source) -> tuple[Item, ...] | None:
    with contextlib.ExitStack() as stack:
        chunks = source.open()
        if hasattr(chunks, "close"):
            stack.callback(chunks.close)
        return Contents().read(chunks)


def _look(
    found: TablesSurvey, connection: BaseDatabaseWrapper, alias: str, request: RestoreRequest, items: tuple[Item, ...]
) -> None:
    names = find(connection, request.tables)
    parts = Parts.seen(connection, set(names.values()))
    here = {table.name: table for table in parts.tables}
    kept = set(catalog.find_tables(connection, request.preserve_tables).values())
    stored = _stored(items)
    found.stop(
        single_tables.refusals(
            alias,
            request.tables,
            journal={
                wanted for wanted in request.tables if wanted in request.preserve_tables or names.get(wanted) in kept
            },
            here={wanted: _instead(here[name]) for wanted, name in names.items() if name in here},
            there={wanted for wanted, name in names.items() if split_name(name) in stored},
        )
    )
    found.stop(preflight.standby(connection))
    found.parts = parts
    found.stored = {
        table.name: item for name, item in stored.items() for table in parts.tables if split_name(table.name) == name
    }
    ((role,),) = catalog.rows(connection, "SELECT current_user::text")
    found.stop(stops(alias, parts, found.stored, role))
    found.warn(_warnings(parts))
    found.warn(preflight.connected_too(connection, _WAITING))
    found.warn(preflight.pooler(connection))


def _stored(items: tuple[Item, ...]) -> dict[tuple[str, ...], Stored]:
    definitions = {(item.schema, item.name): item.definition for item in items if item.kind == "TABLE"}
    return {
        (item.schema, item.name): Stored(
            number=item.number, copy=item.copy, definition=definitions.get((item.schema, item.name), "")
        )
        for item in items
        if item.kind == "TABLE DATA"
    }


def _instead(table: Table) -> str:
    """What *table* is, if it has no rows of its own that could be replaced."""
    if table.kind == "p":
        return f"a partitioned table (name its partitions: {', '.join(table.partitions) or 'it has none'})"
    if table.member:
        return "a part of an extension"
    return "" if table.kind == "r" else _KINDS.get(table.kind, "something else")


def stops(alias: str, parts: Parts, stored: Mapping[str, Stored], role: str) -> Iterator[str]:
    """What the tables and the keys themselves have in the way; once more when they are locked."""
    for name, item in stored.items():
        if root := item.through(name):
            yield (
                f"The rows of {name} of {alias!r} are loaded through {root}, which distributes them anew among its "
                "partitions, by the hash of an enum that is another one in each database. Restore the whole, or "
                "restore it into a database of another name and copy the rows from there."
            )
    for table in parts.tables:
        if table.name in stored and (
            said := single_tables.columns(alias, table.name, stored[table.name].columns(table.columns), table.columns)
        ):
            yield said
    if foreign := [table.name for table in parts.tables if table.kind == "r" and not (table.mine or table.member)]:
        yield (
            f"The role {role} does not own {', '.join(foreign)} of {alias!r}, whose triggers and sequences have to be "
            "changed: restore as the owner."
        )
    if hidden := [table.name for table in parts.tables if table.hidden]:
        yield (
            f"Row-level security hides rows of {', '.join(hidden)} in {alias!r} from the role {role}. Restore as one "
            "that it doesn't apply to, or let a superuser ALTER ROLE ... BYPASSRLS."
        )
    if fixed := [key.told for key in parts.remade if not key.mine]:
        yield (
            f"These foreign keys have to be dropped and made again, for they are not DEFERRABLE or act on a "
            f"delete, and the role {role} does not own their tables: {', '.join(fixed)}."
        )


def _warnings(parts: Parts) -> Iterator[str]:
    if parts.remade:
        yield (
            "While these foreign keys are dropped and made again, the tables on both their ends can't be read: "
            f"{', '.join(key.told for key in parts.remade)}."
        )
    if waiting := sorted({key.table for key in parts.pointing}):
        yield f"Foreign keys of {', '.join(waiting)} point at these tables: whoever writes a row there that does waits."
    if large := [f"{column} of {table.name}" for table in parts.tables for column in table.large]:
        yield (
            f"Large objects are no part of a table: those that {', '.join(large)} may name are left as they are now."
        )
