"""Keeps the rows of some tables through a restore that replaces everything, on any engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from pathlib import Path

from django.apps import apps
from django.db import DatabaseError, connections, transaction

from django_snapshots.connectors import model_rows, sqlite_files
from django_snapshots.connectors.model_rows import Model, table_of
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.redaction import redact
from django_snapshots.transfer import CHUNK_SIZE


class PreservedRows:
    """The rows of *tables* of *alias*, saved to the private file *path* and written back later.

    Only tables of models can be kept, because a table that is gone afterwards is made again from its model.
    """

    def __init__(self, alias: str, tables: frozenset[str], path: Path) -> None:
        self._alias = alias
        self._tables = tables
        self._path = path
        self._models: list[Model] = []

    def save(self) -> None:
        """Write the rows to the file. Raises ``SnapshotConnectorError`` before anything was changed."""
        if not self._tables or sqlite_files.file_is_missing(self._alias):
            return
        try:
            with transaction.atomic(using=self._alias):
                present = set(connections[self._alias].introspection.table_names())
                self._models = _models_of(self._alias, self._tables & present)
                self._write()
        except (DatabaseError, OSError) as error:
            raise SnapshotConnectorError(
                f"The rows of {', '.join(sorted(self._tables))} could not be saved before {self._alias!r} is restored: "
                f"{redact(str(error)).strip()}. Nothing was changed."
            ) from error

    def write_back(self) -> None:
        """Make the tables hold the saved rows again, and only those.

        A restore that has left these tables alone may have left rows in them that others have written since they were
        saved: those stay. So nothing is done where every saved row is still there.
        """
        try:
            if not self._models or self._are_left_alone():
                return
            # SQLite rebuilds tables, and leaves its checks alone, only outside of a transaction.
            with connections[self._alias].constraint_checks_disabled():
                self._make_tables()
                with transaction.atomic(using=self._alias):
                    self._replace_rows()
        except (DatabaseError, OSError) as error:
            raise SnapshotConnectorError(
                f"{self._alias!r} was restored, but the rows of {', '.join(map(table_of, self._models))} could not be "
                f"written back: {redact(str(error)).strip()}. Run manage.py migrate, and look for those runs in the "
                "safety snapshot."
            ) from error

    def _write(self) -> None:
        with self._path.open("wb") as file:
            for model in self._models:
                for row in model_rows.rows(model, self._alias):
                    file.write(model_rows.line(row))

    def _are_left_alone(self) -> bool:
        """Whether every saved row is there. Among them is that of the restore itself, which no older dump has."""
        if any(self._columns(model) != _columns_of(model) for model in self._models):
            return False
        saved: dict[str, set[str]] = {}
        for text in filter(None, model_rows.lines(self._read())):
            row = model_rows.parse(text)
            saved.setdefault(row["model"], set()).add(json.dumps(row["pk"]))
        by_label = {model._meta.label_lower: model for model in self._models}
        return bool(saved) and all(keys <= self._keys(by_label[label]) for label, keys in saved.items())

    def _keys(self, model: Model) -> set[str]:
        lines = map(model_rows.line, model_rows.rows(model, self._alias))
        return {json.dumps(model_rows.parse(text)["pk"]) for text in lines}

    def _make_tables(self) -> None:
        """A table that is gone, or has other columns than its model, is made from the model."""
        connection = connections[self._alias]
        for model in self._models:
            there = self._columns(model)
            if there == _columns_of(model):
                continue
            with connection.schema_editor() as editor:
                if there:
                    editor.delete_model(model)
                editor.create_model(model)

    def _columns(self, model: Model) -> set[str]:
        connection = connections[self._alias]
        with connection.cursor() as cursor:
            if table_of(model) not in connection.introspection.table_names(cursor):
                return set()
            return {column.name for column in connection.introspection.get_table_description(cursor, table_of(model))}

    def _replace_rows(self) -> None:
        connection = connections[self._alias]
        with connection.cursor() as cursor:
            for model in reversed(self._models):
                cursor.execute(f"DELETE FROM {connection.ops.quote_name(table_of(model))}")  # noqa: S608 - quoted
        model_rows.insert(model_rows.lines(self._read()), self._alias)
        model_rows.reset_sequences(self._alias, self._models)

    def _read(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_SIZE):
                yield chunk


def _columns_of(model: Model) -> set[str]:
    return {str(field.column) for field in model._meta.local_concrete_fields}


def _models_of(alias: str, tables: Set[str]) -> list[Model]:
    by_table = {table_of(model): model for model in apps.get_models(include_auto_created=True) if not model._meta.proxy}
    unknown = sorted(tables - by_table.keys())
    if unknown:
        raise SnapshotConnectorError(
            f"{', '.join(unknown)} of {alias!r} should stay as they are, but no model of this project has them; "
            "nothing was changed."
        )
    return model_rows.in_order([by_table[table] for table in sorted(tables)])
