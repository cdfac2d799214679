"""Rows of Django's models as JSON Lines, one object a line, as ``loaddata`` reads them, and back.

Unlike ``dumpdata``: rows of many-to-many tables are lines of their own, with their keys; times keep their
microseconds; columns that Django's serializers leave out (``serialize=False``) are there; rows come through the base
manager, so that a default manager hides none. Rows go in as they are: no signals, no ``auto_now``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import apps
from django.core.management.color import no_style
from django.core.serializers.base import DeserializationError, DeserializedObject
from django.core.serializers.json import DjangoJSONEncoder
from django.core.serializers.python import Deserializer
from django.db import connections, models, router
from django.db.models import sql
from django.utils.encoding import is_protected_type

ROWS_AT_ONCE = 500
_BYTES_AT_ONCE = 4 * 1024 * 1024

Model = type[models.Model]


class _ExactEncoder(DjangoJSONEncoder):
    """Django's encoder cuts microseconds off."""

    def default(self, o: Any) -> Any:
        if isinstance(o, (datetime.datetime, datetime.time)):
            return o.isoformat()
        return super().default(o)


def covered_models(alias: str, exclude_tables: frozenset[str] = frozenset()) -> list[Model]:
    """The models whose tables are *alias*'s and Django's to fill, each table once; those referred to come first."""
    found: dict[str, Model] = {}
    for model in apps.get_models(include_auto_created=True):
        options = model._meta
        if options.managed and not options.proxy and not options.swapped and router.allow_migrate_model(alias, model):
            found.setdefault(options.db_table, model)
    return in_order([model for table, model in sorted(found.items()) if table not in exclude_tables])


def in_order(found: list[Model]) -> list[Model]:
    """*found*, with those that others refer to first; where they refer to each other, in either order."""
    ordered: dict[Model, None] = {}
    visited: set[Model] = set()

    def visit(model: Model) -> None:
        if model in visited:
            return
        visited.add(model)  # before its relations: cycles end here
        for field in model._meta.local_concrete_fields:
            related: Any = field.related_model
            if related is not None and related._meta.concrete_model in wanted:
                visit(related._meta.concrete_model)
        ordered[model] = None

    wanted = set(found)
    for model in found:
        visit(model)
    return list(ordered)


def table_of(model: Model) -> str:
    """The name of the model's table."""
    return str(model._meta.db_table)


def stored_fields(model: Model) -> list[models.Field[Any, Any]]:
    """The columns that hold values of their own in the model's own table."""
    return [field for field in model._meta.local_concrete_fields if not field.generated]


def rows(model: Model, alias: str) -> Iterator[models.Model]:
    """Every row, ordered by key, a bounded number at a time."""
    queryset = model._base_manager.using(alias).order_by("pk")
    if connections[alias].vendor != "mysql":
        yield from queryset.iterator(chunk_size=ROWS_AT_ONCE)
        return
    # The MySQL client keeps a whole result in memory, so it is asked for a piece at a time.
    page = list(queryset[:ROWS_AT_ONCE])
    while page:
        yield from page
        page = list(queryset.filter(pk__gt=page[-1].pk)[:ROWS_AT_ONCE])


def line(row: models.Model) -> bytes:
    """One row as a line of JSON."""
    options = row._meta
    fields = {field.name: _value(row, field) for field in stored_fields(type(row)) if not field.primary_key}
    content = {"model": options.label_lower, "pk": _key(row), "fields": fields}
    return json.dumps(content, cls=_ExactEncoder, ensure_ascii=False, separators=(",", ": ")).encode() + b"\n"


def _key(row: models.Model) -> Any:
    key: Any = row._meta.pk
    if isinstance(key, models.CompositePrimaryKey):
        return [_value(row, field) for field in key]
    return _value(row, key)


def _value(row: models.Model, field: Any) -> Any:
    value: Any = field.value_from_object(row)
    as_it_is: bool = is_protected_type(value)
    return value if as_it_is else field.value_to_string(row)


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, without their ends. Raises ``DeserializationError`` if the last one has no end."""
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for other in others:
            yield b"".join(pieces)
            pieces = [other]
    if any(pieces):
        raise DeserializationError("the last line has no end: something is missing")


def parse(text: bytes) -> dict[str, Any]:
    """One line as the object that it stands for. Raises ``DeserializationError``."""
    try:
        content: dict[str, Any] = json.loads(text)
        content["model"].lower(), content["fields"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeserializationError(f"a line is not an object of Django's ({error})") from error
    return content


def insert(texts: Iterable[bytes], alias: str) -> dict[str, int]:
    """Insert the rows that *texts* stand for; return how many went into each table."""
    inserted: dict[str, int] = {}
    for batch in _batches(texts, alias):
        table = table_of(type(batch[0].object))
        inserted[table] = inserted.get(table, 0) + len(batch)
        _insert_batch(batch, alias)
    return inserted


def reset_sequences(alias: str, found: list[Model]) -> None:
    """Let new rows get keys above those that are there, on engines that don't see to it themselves."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), found):
            cursor.execute(statement)


def _batches(texts: Iterable[bytes], alias: str) -> Iterator[list[DeserializedObject]]:
    """Rows of one model, a bounded number of them with a bounded number of bytes."""
    batch: list[DeserializedObject] = []
    size = 0
    for text in filter(None, texts):
        (item,) = Deserializer([parse(text)], using=alias)
        full = len(batch) >= ROWS_AT_ONCE or size >= _BYTES_AT_ONCE
        if batch and (full or type(batch[0].object) is not type(item.object)):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(text)
    if batch:
        yield batch


def _insert_batch(batch: list[DeserializedObject], alias: str) -> None:
    objects = [item.object for item in batch]
    fields = stored_fields(type(objects[0]))
    for row in objects:
        _restore_json_null(row, fields)
    step = max(1, connections[alias].ops.bulk_batch_size(fields, objects))
    for start in range(0, len(objects), step):
        query = sql.InsertQuery(type(objects[0]))
        query.insert_values(fields, objects[start : start + step], raw=True)
        query.get_compiler(using=alias).execute_sql()
    for item in batch:
        if item.m2m_data:  # written by dumpdata
            item.save(using=alias)


def _restore_json_null(row: models.Model, fields: list[models.Field[Any, Any]]) -> None:
    """A JSON column that can't be NULL and reads as ``None`` held the JSON value ``null``."""
    for field in fields:
        if isinstance(field, models.JSONField) and not field.null and getattr(row, field.attname) is None:
            setattr(row, field.attname, models.Value(None, models.JSONField()))
