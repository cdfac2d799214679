"""What stands in the way of a restore into a SQLite database, or will surprise whoever asked for it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator

from django_snapshots.connectors import sqlite_chosen, sqlite_tables
from django_snapshots.connectors import sqlite_files as files
from django_snapshots.connectors.recorded import row_counts
from django_snapshots.connectors.single_tables import refusals
from django_snapshots.connectors.sqlite_files import Place
from django_snapshots.exceptions import SnapshotError
from django_snapshots.replaced import Finding
from django_snapshots.sizes import human_size
from django_snapshots.transfer import RestoreRequest, Source


def findings(place: Place, source: Source, request: RestoreRequest) -> Iterator[Finding]:
    """Everything; changes nothing."""
    yield from _of_the_dump(place, source)
    if request.drill:
        return
    if place.path is None:
        yield from _of_the_memory(place)
        return
    if not place.real.parent.is_dir():
        yield _error(f"The directory {place.real.parent} of {place.title} does not exist; make it (or mount it) first.")
        return
    yield from _of_the_directory(place, source)
    if place.real.exists():
        yield from _of_the_file(place, source, request)
    elif request.tables:
        yield _error(sqlite_chosen.nowhere(place))


def _error(text: str) -> Finding:
    return Finding(text=text, stops=True)


def _warning(text: str) -> Finding:
    return Finding(text=text, stops=False)


def _of_the_memory(place: Place) -> Iterator[Finding]:
    try:
        with files.open_memory(place):
            pass
    except SnapshotError as error:
        yield _error(str(error))
        return
    yield _warning(
        f"The database of {place.title} is in memory: only this process can restore it, and what is replaced is kept "
        "in a safety snapshot alone."
    )


def _of_the_dump(place: Place, source: Source) -> Iterator[Finding]:
    engine, version = source.metadata.get("engine"), source.metadata.get("server_version")
    if engine not in (None, "sqlite"):
        yield _error(
            f"{source.filename} is a dump of {engine}, and {place.title} is a SQLite database; restore it into an "
            f"alias of {engine}."
        )
    elif _is_newer(version):
        yield _warning(
            f"{source.filename} was written by SQLite {version}, and this is {sqlite3.sqlite_version}; if it uses what "
            "this one doesn't know, its check fails before anything is touched."
        )


def _is_newer(version: object) -> bool:
    with contextlib.suppress(ValueError):
        return tuple(int(part) for part in str(version).split(".")) > sqlite3.sqlite_version_info
    return False


def _of_the_directory(place: Place, source: Source) -> Iterator[Finding]:
    parent = place.real.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        yield _error(
            f"{parent} can't be written to; SQLite writes its journal there, and what is replaced is kept there. Let "
            "the worker's user write to it."
        )
        return
    needed, free = _needed(place, source), shutil.disk_usage(parent).free
    if needed > free:
        yield _error(
            f"The restore of {place.title} needs up to {human_size(needed)} in {parent}, for the new database, the "
            f"replaced one and SQLite's journal, and {human_size(free)} are free; make room."
        )


def _needed(place: Place, source: Source) -> int:
    """The staged copy, the kept copy, and a journal or write-ahead log of the larger of both."""
    coming = source.metadata.get("content_size")
    coming = coming if isinstance(coming, int) else 0
    there = sum(_size(f"{place.real}{suffix}") for suffix in ("", "-wal"))
    return coming + there + max(coming, there)


def _size(name: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(name).st_size  # noqa: PTH116 - nothing is opened
    return 0


def _of_the_file(place: Place, source: Source, request: RestoreRequest) -> Iterator[Finding]:
    if not os.access(place.real, os.R_OK | os.W_OK):
        yield _error(f"{place.real} can't be written to; let the worker's user read and write it.")
        return
    for holder in files.holders(place):
        yield _warning(
            f"{place.title} is in use by {holder}. The restore waits for its transaction, a bounded time; readers and "
            "writers wait or fail while the content is replaced."
        )
    try:
        with files.open_file(place) as live:
            yield from _of_the_content(place, source, request, live)
    except sqlite3.DatabaseError as error:
        if files.is_damage(error) and request.tables:
            yield _error(f"{place.real} can't be read as a database ({error}); restore the whole snapshot.")
        elif files.is_damage(error):
            yield _warning(
                f"{place.real} can't be read as a database ({error}); it is kept as it is, and rows of "
                f"{', '.join(sorted(request.preserve_tables)) or 'no table'} that are in it can't be taken along."
            )
        else:
            yield _warning(f"{place.title} could not be looked into: {error}.")
    except (OSError, SnapshotError) as error:
        yield _warning(f"{place.title} could not be looked into: {error}.")


def _of_the_content(
    place: Place, source: Source, request: RestoreRequest, live: sqlite3.Connection
) -> Iterator[Finding]:
    if request.tables:
        yield from _of_the_tables(place, source, request, live)
        return
    page_size, theirs = files.pragma(live, "page_size"), source.metadata.get("page_size")
    if files.pragma(live, "journal_mode") == "wal" and isinstance(theirs, int) and theirs != page_size:
        yield _warning(f"{place.title} keeps its page size of {page_size} bytes; the dump's was {theirs}.")
    for what in _users_of(live, request.preserve_tables):
        yield _error(
            f"{what} of {place.title} refers to a table of this package, which a restore leaves as it is; drop it, or "
            "move the package's tables to an alias of their own."
        )


def _of_the_tables(
    place: Place, source: Source, request: RestoreRequest, live: sqlite3.Connection
) -> Iterator[Finding]:
    """What can be told of single tables without the dump; whether its columns are the same shows when it is read."""
    here, there = sqlite_tables.kinds(live, sqlite_tables.LIVE), row_counts(source.metadata)
    for refusal in refusals(place.alias, request.tables, journal=request.preserve_tables, here=here, there=there):
        yield _error(refusal)
    for sentence in sqlite_chosen.silent_triggers(live, request.tables):
        yield _warning(sentence)


def _users_of(live: sqlite3.Connection, tables: frozenset[str]) -> Iterator[str]:
    """The project's own foreign keys, views and triggers on *tables*."""
    if not tables:
        return
    for table in files.table_names(live):
        parents = {str(row[2]) for row in live.execute(f"PRAGMA foreign_key_list({files.quoted(table)})")}
        if table not in tables and parents & tables:
            yield f"A foreign key of the table {table!r}"
    named = re.compile(rf"\b({'|'.join(map(re.escape, sorted(tables)))})\b", re.IGNORECASE)
    for kind, name, sql in live.execute("SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger')"):
        if named.search(sql or ""):
            yield f"The {kind} {name!r}"
