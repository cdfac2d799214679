"""What proves that a restore gave everything back: a digest of every table, row by row, and of every media file.

It is computed here, from the live databases and files, and knows nothing of how snapshots are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots import runs

LEFT_OUT = frozenset(
    {
        *runs.tables(),
        "django_celery_results_taskresult",
        "django_celery_beat_periodictask",
        "django_celery_beat_periodictasks",
    }
)
"""The journal, which a restore leaves alone, and what Celery writes while the demo runs: results and beat's clock."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One table, one file, or the definitions of one database."""

    name: str
    size: int
    """Rows of a table, bytes of a file, definitions of a database."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that the project has."""

    tables: tuple[Part, ...]
    definitions: tuple[Part, ...]
    files: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """In all tables."""
        return sum(part.size for part in self.tables)

    @property
    def file_bytes(self) -> int:
        """In all files."""
        return sum(part.size for part in self.files)

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of what *other* has otherwise, or has not, or has besides."""
        ours, theirs = self._by_name(), other._by_name()
        return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))

    def _by_name(self) -> dict[str, Part]:
        return {part.name: part for part in (*self.tables, *self.definitions, *self.files)}


def take() -> Fingerprint:
    """Read every row of every alias and every byte of ``MEDIA_ROOT``."""
    return Fingerprint(
        tables=tuple(part for alias in connections for part in _tables(alias)),
        definitions=tuple(_definitions(alias) for alias in connections),
        files=tuple(_files(Path(settings.MEDIA_ROOT))),
    )


def _tables(alias: str) -> Iterator[Part]:
    connection = connections[alias]
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor, include_views=True)
    for name in sorted(set(names) - LEFT_OUT):
        yield _table(connection, alias, name)


def _table(connection: BaseDatabaseWrapper, alias: str, name: str) -> Part:
    digest, rows = hashlib.sha256(), 0
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {connection.ops.quote_name(name)} ORDER BY 1")
        for row in cursor:
            digest.update(repr(row).encode())
            rows += 1
    return Part(name=f"table {alias}.{name}", size=rows, digest=digest.hexdigest())


def _definitions(alias: str) -> Part:
    """Tables, indexes, triggers and views as SQLite keeps them."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
        rows = [row for row in cursor if row[2] not in LEFT_OUT]
    return Part(name=f"definitions of {alias}", size=len(rows), digest=hashlib.sha256(repr(rows).encode()).hexdigest())


def _files(root: Path) -> Iterator[Part]:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield Part(name=f"file {path.relative_to(root)}", size=path.stat().st_size, digest=digest)
