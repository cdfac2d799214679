"""The schemas beside a target that a restore builds in and keeps in, and the record of a switch that is in one of them.

A schema that holds a complete state holds the table ``MARKER``. There is one marker per exchange, and it moves from the
incoming schema to the outgoing one by the same statement as the tables do, so where it is says on which side of the
switch an attempt stopped.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import InterfaceError

from django_snapshots.connectors.mysql.server import execute, names, quote, rows, value
from django_snapshots.exceptions import SnapshotConnectorError

NEW_PREFIX = "django_snapshots_new_"
OLD_PREFIX = "django_snapshots_old_"
SCHEMA_PATTERN = r"`django\_snapshots\_%`.*"
"""What the right to make and drop these schemas is granted on."""
MARKER = "django_snapshots_complete"
RECORD = "django_snapshots_record"
OWN_TABLES = frozenset({MARKER, RECORD})
_DONE = "done"
HIDDEN_PREFIX = "hidden_by_django_snapshots_"
_MARK = re.compile(r"[0-9a-z_]{1,40}")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One trigger, view, routine or event, in the bytes in which the server keeps it."""

    kind: str
    """``TRIGGER``, ``VIEW``, ``EVENT``, ``FUNCTION``, ``PROCEDURE``, ``PACKAGE`` or ``PACKAGE BODY``; or ``GRANT`` and
    one of the last four, of what an account may do with that."""
    name: str
    text: bytes
    """Of a trigger, with the hidden name of its table."""
    sql_mode: str = ""
    charset: str = "utf8mb4"
    collation: str = "utf8mb4_general_ci"
    database_collation: str = ""
    time_zone: str = ""
    table: str = ""
    """The hidden name of a trigger's table."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two states that an exchange moves, and the schema where it is when it isn't in the target."""

    home: str
    charset: str
    collation: str
    tables: Mapping[str, str]
    """Hidden names by names."""
    sequences: Sequence[str] = ()
    defaults: Sequence[tuple[str, str, str]] = ()
    """Hidden table, column and default where that is the next number of a sequence: such a text names a schema."""
    definitions: Sequence[Definition] = ()
    captured: bool = True
    """Whether *definitions* has the triggers; those of the target are read when its tables are hidden."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What an exchange is about; durable before its first statement that changes the target."""

    mark: str
    target: str
    about: Mapping[str, Any]
    kept_at: str
    preserved: frozenset[str]
    outgoing: Side
    """What the target was."""
    incoming: Side
    """What it is to be."""
    incoming_is_kept: bool
    """Whether that is a state which an earlier restore has replaced: it stays if the exchange goes back."""
    decided: bool = False
    """Whether the statement that moves the tables may have been sent."""
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What an exchange of the rows of some tables is about, and whether it took place; it lies in *home*."""

    mark: str
    target: str
    about: Mapping[str, Any]
    kept_at: str
    home: str
    """The schema that the replaced rows are kept in."""
    origin: str
    """The schema that the others come from."""
    origin_is_kept: bool
    """Whether that holds rows that an earlier restore has replaced: it stays unless this one takes place."""
    tables: Sequence[str]
    done: bool = False
    """Whether it took place; its row is committed with the rows themselves."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a schema that is being filled says of itself."""

    mark: str
    target: str
    about: Mapping[str, Any] = field(default_factory=dict)


class NotUnderstood(SnapshotConnectorError):
    """The record of a schema can't be understood: it is another project's, a newer release's, or damaged."""

    target = ""
    """The target that it names, as far as that can be read."""
    halfway = True
    """Whether it may be of an exchange that has stopped in the middle of its target."""


def require_mark(mark: str) -> str:
    """Raise ``SnapshotConnectorError`` unless *mark* can be a part of a schema's name."""
    if not _MARK.fullmatch(mark):
        raise SnapshotConnectorError(f"{mark!r} is no mark of a restore: at most 40 of 0-9, a-z and _ are.")
    return mark


def schema_names(connection: BaseDatabaseWrapper, wanted: Sequence[str] = ()) -> list[str]:
    """The schemas that are ours by name or are in *wanted*, as far as they are there."""
    found = names(connection, "SELECT schema_name FROM information_schema.schemata ORDER BY 1 DESC")
    return [name for name in found if name in wanted or name.startswith((NEW_PREFIX, OLD_PREFIX))]


def tables_in(connection: BaseDatabaseWrapper, schema: str) -> dict[str, str]:
    """The kinds of everything in *schema* that information_schema calls a table, by name."""
    found = rows(
        connection,
        f"SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = {text(schema)}",  # noqa: S608
    )
    return {str(name): str(kind) for name, kind in found}


def is_free(connection: BaseDatabaseWrapper, schema: str) -> bool:
    """Whether *schema* holds nothing. A record's table without a row is nothing: whoever made it died before he wrote
    it, and the next one uses it."""
    found = tables_in(connection, schema)
    return not found or (
        set(found) == {RECORD} and not value(connection, f"SELECT COUNT(*) FROM {record_table(schema)}")  # noqa: S608
    )


def text(value: str) -> str:
    """A string as a literal, under any sql_mode that knows no other quotes."""
    return f"CONVERT(X'{value.encode().hex()}' USING utf8mb4)" if value else "''"


def create_record(connection: BaseDatabaseWrapper, schema: str, content: Record | Rows | Label) -> None:
    """Write what *schema* is about into it; on return that is durable."""
    execute(
        connection,
        f"CREATE TABLE IF NOT EXISTS {record_table(schema)} (position INTEGER AUTO_INCREMENT PRIMARY KEY, "
        "side CHAR(8) NOT NULL, kind VARCHAR(20) NOT NULL, name VARCHAR(128) NOT NULL, settings LONGTEXT NOT NULL, "
        "content LONGBLOB NOT NULL) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    )
    with_transaction(connection, [f"DELETE FROM {record_table(schema)}", *_rows(schema, content)])  # noqa: S608


def with_transaction(connection: BaseDatabaseWrapper, statements: Sequence[str]) -> None:
    """Run all *statements* or none."""
    execute(connection, "START TRANSACTION")
    try:
        for statement in statements:
            execute(connection, statement)
        execute(connection, "COMMIT")
    except BaseException:
        # A session that lives would see what it has half done, and its next DDL would commit that.
        with contextlib.suppress(DatabaseError, InterfaceError):
            execute(connection, "ROLLBACK")
        raise


def read_record(connection: BaseDatabaseWrapper, schema: str) -> Record | Rows | Label | None:
    """What *schema* says it is about; ``None`` if it says nothing. Raises ``NotUnderstood``."""
    if RECORD not in tables_in(connection, schema):
        return None
    try:
        found = rows(
            connection,
            f"SELECT side, kind, name, settings, content FROM {record_table(schema)} ORDER BY position",  # noqa: S608
        )
    except DatabaseError as error:
        if error.args[0] not in _OTHER_COLUMNS:
            raise
        raise _not_understood(schema, error, ()) from error
    try:
        return _understood(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _not_understood(schema, error, found) from error


_OTHER_COLUMNS = (1054, 1146)
"""A column, or all of the table, is not there."""


def _not_understood(schema: str, error: Exception, found: Sequence[tuple[Any, ...]]) -> NotUnderstood:
    """Whom it concerns is read from whatever is left of it."""
    heads = [(str(kind), _read_leniently(settings)) for side, kind, _, settings, _ in found if side == "head"]
    # While a state is built its target is untouched, and rows are exchanged in one transaction.
    halfway = not heads or any(kind not in ("label", "rows") and head.get("done") is not True for kind, head in heads)
    advice = (
        "It alone may know the names, triggers, views and events of what it is about: don't drop it."
        if halfway
        else "It may hold a state that a restore has replaced: look at it, and drop the schema if nobody needs that."
    )
    raised = NotUnderstood(
        f"The record of a restore in the schema {schema} can't be understood ({type(error).__name__}: {error}), so "
        "nothing is done with what is there. If a newer release has written it, that one understands it: run "
        f"manage.py snapshots sweep with that. {advice}"
    )
    raised.target = next((head["target"] for _, head in heads if isinstance(head.get("target"), str)), "")
    raised.halfway = halfway
    return raised


def _read_leniently(settings: str) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        head = json.loads(settings)
        return head if isinstance(head, dict) else {}
    return {}


def _understood(found: Sequence[tuple[Any, ...]]) -> Record | Rows | Label | None:
    if not found:
        return None
    heads = {str(kind): json.loads(settings) for side, kind, _, settings, _ in found if side == "head"}
    content: Record | Rows | Label
    if "switch" in heads:
        content = _record_of(heads["switch"], found)
    elif "rows" in heads:
        content = Rows(**heads["rows"], done=any(side == _DONE for side, *_ in found))
    else:
        content = Label(**heads["label"])
    _require_types(content)
    return content


def _require_types(content: Record | Rows | Label) -> None:
    """Raise ``TypeError`` or ``ValueError`` where JSON of the right form holds what nobody can work with."""
    words = [content.mark, content.target]
    if isinstance(content, Record):
        words += [content.outgoing.home, content.incoming.home]
    if isinstance(content, Rows):
        words += [content.home, content.origin, *content.tables]
    if not (all(isinstance(word, str) for word in words) and isinstance(content.about, dict)):
        raise TypeError("a name is no text, or what is said about it is no object")
    if not isinstance(content, Label) and datetime.fromisoformat(content.kept_at).tzinfo is None:
        raise ValueError("its time has no zone")


def replace_record(connection: BaseDatabaseWrapper, record: Record, **changes: Any) -> Record:
    """Write a record anew with *changes*, durably; return it."""
    record = replace(record, **changes)
    create_record(connection, record.outgoing.home, record)
    return record


def still_building(schema: str, mark: str) -> str:
    """A scalar that can be computed only where *schema* is still being filled by *mark*: elsewhere it is an error."""
    label = (
        f"SELECT 1 FROM {record_table(schema)} WHERE kind = 'label' AND "  # noqa: S608 - hex
        f"JSON_UNQUOTE(JSON_EXTRACT(settings, '$.mark')) = {text(mark)}"
    )
    return f"(SELECT 1 UNION ALL SELECT 2 FROM DUAL WHERE NOT EXISTS ({label}))"  # noqa: S608 - hex


def record_table(schema: str) -> str:
    """The table that holds the record of *schema*."""
    return f"{quote(schema)}.{RECORD}"


def done_statement(schema: str) -> str:
    """What says, within the transaction that does it, that the exchange of rows recorded in *schema* took place."""
    return _insert(schema, _DONE, "rows", "", {}, b"")


def not_done_statement(schema: str) -> str:
    """What says, within the transaction that takes it back, that it did not."""
    return f"DELETE FROM {record_table(schema)} WHERE side = '{_DONE}'"  # noqa: S608 - a constant


def _rows(schema: str, content: Record | Rows | Label) -> Iterator[str]:
    if isinstance(content, Rows):
        head = {**vars(content), "about": dict(content.about), "tables": list(content.tables)}
        head.pop("done")
        yield _insert(schema, "head", "rows", "", head, b"")
        return
    if isinstance(content, Label):
        head = {"mark": content.mark, "target": content.target, "about": dict(content.about)}
        yield _insert(schema, "head", "label", "", head, b"")
        return
    yield _insert(schema, "head", "switch", "", _head(content), b"")
    for side, state in (("outgoing", content.outgoing), ("incoming", content.incoming)):
        for item in state.definitions:
            settings = {key: value for key, value in vars(item).items() if key not in ("kind", "name", "text")}
            yield _insert(schema, side, item.kind, item.name, settings, item.text)


def _insert(schema: str, side: str, kind: str, name: str, settings: Mapping[str, Any], content: bytes) -> str:
    return (
        f"INSERT INTO {record_table(schema)} (side, kind, name, settings, content) VALUES "  # noqa: S608 - all of it is hex
        f"('{side}', '{kind}', {text(name)}, {text(json.dumps(settings))}, X'{content.hex()}')"
    )


def _head(record: Record) -> dict[str, Any]:
    head = {**vars(record), "preserved": sorted(record.preserved), "about": dict(record.about)}
    for name in ("outgoing", "incoming"):
        side = dict(vars(head[name]))
        side.pop("definitions")
        # A JSON object keeps the order of its keys, which is that of the hidden numbers.
        head[name] = side
    return head


def _record_of(head: Mapping[str, Any], found: Sequence[tuple[Any, ...]]) -> Record:
    sides = {
        name: Side(
            **{**head[name], "defaults": [tuple(item) for item in head[name]["defaults"]]},
            definitions=[
                Definition(kind=str(kind), name=str(item), text=bytes(content), **json.loads(settings))
                for side, kind, item, settings, content in found
                if side == name
            ],
        )
        for name in ("outgoing", "incoming")
    }
    return Record(**{**head, **sides, "preserved": frozenset(head["preserved"])})
