"""The tables of a database whose rows are replaced alone: what they are, what points at them, why one can't be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import single_tables
from django_snapshots.connectors.mysql.record import text
from django_snapshots.connectors.mysql.server import names, quote, rows

_NEXT = re.compile(r"nextval\(`(?P<schema>(?:[^`]|``)*)`\.`(?P<name>(?:[^`]|``)*)`\)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ForeignKey:
    """One foreign key of or on a table whose rows are replaced."""

    schema: str
    child: str
    name: str
    columns: Sequence[str]
    parent_schema: str
    parent: str
    referenced: Sequence[str]

    def __str__(self) -> str:
        return f"the foreign key {self.name} of {self.child} to {self.parent}"


def _kinds(connection: BaseDatabaseWrapper, schema: str) -> tuple[dict[str, str], dict[str, str]]:
    """What each name in *schema* is, in words, empty for a table with rows of its own; and why one transaction can't
    replace the rows of some of these."""
    found = rows(
        connection,
        f"SELECT table_name, table_type, engine FROM information_schema.tables WHERE table_schema = {text(schema)}",  # noqa: S608
    )
    kinds: dict[str, str] = {}
    unfit: dict[str, str] = {}
    for name, kind, engine in found:
        has_rows = kind in ("BASE TABLE", "SYSTEM VERSIONED")
        kinds[str(name)] = "" if has_rows else f"a {str(kind).lower()}"
        if kind == "SYSTEM VERSIONED":
            unfit[str(name)] = "a system-versioned table, whose history would change"
        elif has_rows and str(engine).lower() != "innodb":
            unfit[str(name)] = f"a table of the engine {engine}, which knows no transactions"
    return kinds, unfit


def columns(connection: BaseDatabaseWrapper, schema: str, table: str) -> dict[str, str]:
    """The columns that hold values of their own, and all that says what these may be."""
    found = rows(
        connection,
        "SELECT column_name, column_type, is_nullable, collation_name FROM information_schema.columns "  # noqa: S608 - hex
        f"WHERE table_schema = {text(schema)} AND table_name = {text(table)} "
        "AND COALESCE(generation_expression, '') = '' ORDER BY ordinal_position",
    )
    return {
        str(name): f"{kind}{f' {collation}' if collation else ''}{' NOT NULL' if nullable == 'NO' else ''}"
        for name, kind, nullable, collation in found
    }


def refusals(
    connection: BaseDatabaseWrapper,
    alias: str,
    target: str,
    tables: Collection[str],
    journal: Collection[str],
    there: Collection[str],
) -> Iterator[str]:
    """What of *tables* can't be restored alone, by name; *there* are those that the snapshot has."""
    here, unfit = _kinds(connection, target)
    yield from single_tables.refusals(alias, tables, journal=journal, here=here, there=there)
    for table in sorted(unfit.keys() & set(tables) - set(journal)):
        yield f"{table} of {alias!r} is {unfit[table]}: restore the whole, or copy its rows by hand."
    yield from fired(connection, alias, target, [table for table in sorted(tables) if here.get(table) == ""])


def fired(connection: BaseDatabaseWrapper, alias: str, target: str, tables: Sequence[str]) -> Iterator[str]:
    """The refusal of tables with triggers that would run, which the server can't be told to leave."""
    found = rows(
        connection,
        "SELECT event_object_table, GROUP_CONCAT(trigger_name ORDER BY 1) FROM information_schema.triggers "  # noqa: S608
        f"WHERE trigger_schema = {text(target)} AND event_manipulation IN ('INSERT', 'DELETE') GROUP BY 1",
    )
    for table, triggers in found:
        if table in tables:
            yield (
                f"{table} of {alias!r} has triggers that would run for every row ({triggers}), and the server can't be "
                "told not to run them: drop them, restore, and make them again. Or restore the whole."
            )


def differences(
    connection: BaseDatabaseWrapper, alias: str, target: str, origin: str, tables: Iterable[str]
) -> Iterator[str]:
    """The refusals of tables whose columns in *target* are others than in *origin*."""
    for table in sorted(tables):
        then, now = (columns(connection, schema, table) for schema in (origin, target))
        if said := single_tables.columns(alias, table, then, now):
            yield said


def sequences(connection: BaseDatabaseWrapper, schema: str, tables: Collection[str]) -> list[tuple[str, str]]:
    """Schema and name of the sequences that columns of *tables* take their next value from."""
    found = rows(
        connection,
        "SELECT table_name, column_default FROM information_schema.columns "  # noqa: S608 - hex
        f"WHERE table_schema = {text(schema)} AND column_default LIKE '%nextval(%'",
    )
    matches = [_NEXT.search(str(default)) for table, default in found if table in tables]
    return sorted({(_plain(match["schema"]), _plain(match["name"])) for match in matches if match})


def _plain(name: str) -> str:
    return name.replace("``", "`")


def foreign_keys(connection: BaseDatabaseWrapper, target: str, tables: Collection[str]) -> list[ForeignKey]:
    """Every foreign key that *tables* have, or that is on one of them."""
    found = rows(
        connection,
        "SELECT table_schema, table_name, constraint_name, column_name, referenced_table_schema, "  # noqa: S608 - hex
        "referenced_table_name, referenced_column_name FROM information_schema.key_column_usage "
        f"WHERE referenced_table_name IS NOT NULL AND {text(target)} IN (table_schema, referenced_table_schema) "
        "ORDER BY table_schema, table_name, constraint_name, ordinal_position",
    )
    keys: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
    for schema, child, name, column, parent_schema, parent, referenced in found:
        if (schema == target and child in tables) or (parent_schema == target and parent in tables):
            mine, theirs = keys.setdefault((schema, child, name, parent_schema, parent), ([], []))
            mine.append(str(column))
            theirs.append(str(referenced))
    return [
        ForeignKey(
            schema=schema, child=child, name=name, columns=mine,
            parent_schema=parent_schema, parent=parent, referenced=theirs,
        )
        for (schema, child, name, parent_schema, parent), (mine, theirs) in keys.items()
    ]  # fmt: skip


class Orphans:
    """Counts the rows that point at nothing by one foreign key and didn't, when rows were replaced.

    A table in *target* has its new rows then; what the replaced ones were is in *before*.
    """

    def __init__(self, key: ForeignKey, number: int, target: str, before: str, tables: Collection[str]) -> None:
        self.key = key
        self._number = number
        self._replaced_child = key.schema == target and key.child in tables
        replaced_parent = key.parent_schema == target and key.parent in tables
        self._before = before
        self._parent_before = before if replaced_parent else key.parent_schema

    def locks(self) -> Iterator[str]:
        """What the counting reads, by its own names: under LOCK TABLES each has to be named."""
        yield f"{self._child} READ"
        yield f"{self._parent('p', self.key.parent_schema)} READ"
        yield f"{self._parent('b', self._parent_before)} READ"
        if self._replaced_child:
            yield f"{quote(self._before)}.{quote(self.key.child)} AS o{self._number} READ"

    def query(self) -> str:
        """The number of these rows."""
        child = f"c{self._number}"
        points = " AND ".join(f"{child}.{quote(column)} IS NOT NULL" for column in self.key.columns)
        lost = f"NOT {self._found('p', self.key.parent_schema, child)}"
        return f"SELECT COUNT(*) FROM {self._child} WHERE {points} AND {lost} AND {self._was_right(child)}"  # noqa: S608

    def _was_right(self, child: str) -> str:
        if not self._replaced_child:
            return self._found("b", self._parent_before, child)
        old = f"o{self._number}"
        same = " AND ".join(f"{old}.{quote(column)} = {child}.{quote(column)}" for column in self.key.columns)
        table = f"{quote(self._before)}.{quote(self.key.child)} AS {old}"
        lost = f"NOT {self._found('b', self._parent_before, old)}"
        return f"NOT EXISTS (SELECT 1 FROM {table} WHERE {same} AND {lost})"  # noqa: S608

    @property
    def _child(self) -> str:
        return f"{quote(self.key.schema)}.{quote(self.key.child)} AS c{self._number}"

    def _parent(self, name: str, schema: str) -> str:
        return f"{quote(schema)}.{quote(self.key.parent)} AS {name}{self._number}"

    def _found(self, name: str, schema: str, child: str) -> str:
        pairs = zip(self.key.referenced, self.key.columns, strict=True)
        match = " AND ".join(f"{name}{self._number}.{quote(theirs)} = {child}.{quote(mine)}" for theirs, mine in pairs)
        return f"EXISTS (SELECT 1 FROM {self._parent(name, schema)} WHERE {match})"  # noqa: S608


def loaded(connection: BaseDatabaseWrapper, schema: str) -> list[str]:
    """The tables of *schema*."""
    return names(
        connection,
        f"SELECT table_name FROM information_schema.tables WHERE table_schema = {text(schema)} "  # noqa: S608
        "AND table_type = 'BASE TABLE'",
    )


def collation_of(connection: BaseDatabaseWrapper, schema: str) -> tuple[str, str]:
    """The character set and the collation of *schema*."""
    charset, collation = rows(
        connection,
        "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata "  # noqa: S608
        f"WHERE schema_name = {text(schema)}",
    )[0]
    return str(charset), str(collation)
