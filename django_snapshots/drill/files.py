"""Which files that rows point at are missing from a snapshot's media."""

from __future__ import annotations

import os
import posixpath
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.files.storage import FileSystemStorage
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.artifacts.media_tar import Member
from django_snapshots.connectors.model_rows import Model, covered_models, stored_fields, table_of

SHOWN = 20
"""Missing files that are named; the others are counted."""
_ROWS_AT_ONCE = 1000
_LONGEST_SHOWN = 300


class StoredNames:
    """The paths in a media archive: in a private file, so that memory does not grow with their number."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE names (path BLOB PRIMARY KEY, link INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            self._connection.execute(statement)

    def add(self, member: Member) -> None:
        """Note one member."""
        self._connection.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (member.path, member.is_link))

    def has(self, path: bytes) -> bool:
        """Whether *path* is there, or lies behind a link, of which only the file system could say where it leads."""
        if self._link_at(path) is not None:
            return True
        parts = path.split(b"/")
        return any(self._link_at(b"/".join(parts[:number])) == 1 for number in range(1, len(parts)))

    def close(self) -> None:
        """Forget them."""
        self._connection.close()

    def _link_at(self, path: bytes) -> int | None:
        row = self._connection.execute("SELECT link FROM names WHERE path = ?", (path,)).fetchone()
        return None if row is None else int(row[0])


@dataclass(kw_only=True)
class Missing:
    """What rows point at and the media don't have."""

    values: int = 0
    """How many values were looked at."""
    count: int = 0
    examples: list[str]

    def note(self) -> str:
        """One sentence, or none."""
        if not self.count:
            return ""
        more = f", and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        named = "; ".join(self.examples)
        return f"{self.count} of {self.values} files that rows point at are not in its media: {named}{more}."


def missing_files(
    subject: str, connection: BaseDatabaseWrapper, root: Path, stored: StoredNames, check: Callable[[], None]
) -> Missing:
    """Look up every ``FileField`` value of the models of the alias *subject*, as *connection*'s database has them.

    Only of fields whose storage keeps its files at or below *root*. *check* may raise.
    """
    missing = Missing(examples=[])
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
    for model, field, prefix in _file_fields(subject, root):
        if table_of(model) not in tables or field.column not in _columns(connection, model):
            continue
        for number, (key, value) in enumerate(_values(model, field, connection)):
            if number % _ROWS_AT_ONCE == 0:
                check()
            missing.values += 1
            path = posixpath.normpath(posixpath.join(prefix, str(value)))
            if not stored.has(os.fsencode(path)):
                missing.count += 1
                if len(missing.examples) < SHOWN:
                    named = f"{model._meta.label}.{field.name} of {key}: {value}"
                    missing.examples.append(named[:_LONGEST_SHOWN])
    return missing


def _file_fields(subject: str, root: Path) -> Iterator[tuple[Model, models.FileField, str]]:
    """Every such field, with where its storage's directory lies below *root*."""
    for model in covered_models(subject):
        for field in stored_fields(model):
            storage: Any = getattr(field, "storage", None)
            if isinstance(field, models.FileField) and isinstance(storage, FileSystemStorage):
                location = Path(storage.base_location).resolve()
                if location.is_relative_to(root):
                    yield model, field, location.relative_to(root).as_posix()


def _columns(connection: BaseDatabaseWrapper, model: Model) -> set[str]:
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, table_of(model))
    return {column.name for column in described}


def _values(model: Model, field: models.FileField, connection: BaseDatabaseWrapper) -> Iterator[tuple[Any, str]]:
    """The keys and values of rows that have a file, a bounded number at a time."""
    rows = model._base_manager.using(connection.alias).exclude(**{field.name: ""}).order_by("pk")
    pairs: Any = rows.exclude(**{f"{field.name}__isnull": True}).values_list("pk", field.name)
    if connection.vendor != "mysql":
        yield from pairs.iterator(chunk_size=_ROWS_AT_ONCE)
        return
    # The MySQL client keeps a whole result in memory, so it is asked for a piece at a time.
    page = list(pairs[:_ROWS_AT_ONCE])
    while page:
        yield from page
        page = list(pairs.filter(pk__gt=page[-1][0])[:_ROWS_AT_ONCE])
