"""SQLite databases as files: where an alias's database is, how it is opened, and what makes a copy of one sound.

The live file is opened by SQLite alone, never by ``open``: closing any other descriptor of it would drop the locks
that this process holds on it (POSIX advisory locks belong to the process).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.facts import require_alias
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConnectorError, SnapshotError
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact

HEADER = b"SQLite format 3\x00"
OWN_TABLES = "django_snapshots_"
PAGES_PER_STEP = 2048
POLL_SECONDS = 0.001
_BUSY_SECONDS = 1.0
_LOCKS = Path("/proc/locks")
_PROBLEMS_SHOWN = 5
# What integrity_check says about the rows' content; the file itself is sound then.
_CONTENT_PROBLEMS = ("NULL value in ", "CHECK constraint failed in ", "TEXT value in ", "NUMERIC value in ")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the database of one alias is."""

    alias: str
    name: str
    """As it stands in ``DATABASES``."""
    path: Path | None
    """The file, absolute; ``None`` for a database in memory."""
    options: tuple[tuple[str, str], ...] = ()
    """What ``NAME`` says about the file where it is a URI, less its ``mode``."""

    @property
    def real(self) -> Path:
        """The file itself, where ``path`` is a link: SQLite keeps its logs beside that. Only for a file."""
        return Path(os.path.realpath(str(self.path)))

    @property
    def title(self) -> str:
        """The alias and where it is, for a message."""
        return f"{self.alias!r} ({self.path or 'in memory'})"

    @property
    def shared_memory(self) -> bool:
        """Whether other connections of this process can see this in-memory database."""
        return self.path is None and self.name.startswith("file:")

    def uri(self) -> str:
        """The file as a URI that opens it for reading and writing and never creates it."""
        query = urlencode([*self.options, ("mode", "rw")])
        return f"file:{quote(str(self.path))}?{query}"


def locate(alias: str) -> Place:
    """Where *alias* is. Raises ``SnapshotConfigurationError`` if there is no such alias."""
    require_alias(alias)
    name = os.fspath(connections[alias].settings_dict["NAME"])
    if name == ":memory:" or "mode=memory" in name or "vfs=memdb" in name:
        return Place(alias=alias, name=name, path=None)
    if not name.startswith("file:"):
        return Place(alias=alias, name=name, path=Path(name).absolute())
    parts = urlsplit(name)
    options = tuple((key, value) for key, value in parse_qsl(parts.query) if key != "mode")
    return Place(alias=alias, name=name, path=Path(unquote(parts.path)).absolute(), options=options)


def file_is_missing(alias: str) -> bool:
    """Whether *alias* is a SQLite file that is not there, which connecting would make."""
    if connections[alias].vendor != "sqlite":
        return False
    path = locate(alias).path
    return path is not None and not path.exists()


def identity(place: Place) -> str:
    """What the database physically is: equal for two aliases of one file, also for one that is made or replaced later.

    So the real path and not the inode; a file with several hard links, which SQLite forbids, has several.
    """
    if place.path is None:
        return f"sqlite:memory:{os.getpid()}:{place.name if place.shared_memory else place.alias}"
    return f"sqlite:{os.path.realpath(place.path)}"


@contextlib.contextmanager
def open_file(place: Place) -> Iterator[sqlite3.Connection]:
    """A connection of our own to the live file, which must exist; pages and rows only, no functions of Django's."""
    _require_file(place)
    connection = sqlite3.connect(
        place.uri(), uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        yield connection
    finally:
        connection.close()


def _require_file(place: Place) -> None:
    if place.path is None or not place.path.is_file():
        raise SnapshotConnectorError(
            f"The SQLite file of {place.title} does not exist; nothing was dumped. Check NAME in DATABASES."
        )


@contextlib.contextmanager
def open_live(place: Place) -> Iterator[sqlite3.Connection]:
    """As ``open_file``, with the SQL functions that Django and the project give to connections of the alias: a rule, an
    index or a generated column of a table may call them when its rows change."""
    _require_file(place)
    wrapper = connections.create_connection(place.alias)
    wrapper.settings_dict = {**wrapper.settings_dict, "NAME": place.uri(), "OPTIONS": {"timeout": _BUSY_SECONDS}}
    wrapper.inc_thread_sharing()
    try:
        wrapper.connect()
        yield wrapper.connection
    finally:
        wrapper.close()


@contextlib.contextmanager
def open_memory(place: Place) -> Iterator[sqlite3.Connection]:
    """The connection that Django has to an in-memory database; it lives in this process, and the private kind only in
    the thread that made it.

    Raises ``SnapshotConnectorError`` where nobody has made it, as in a worker: to connect would make another one, which
    nobody else sees.
    """
    wrapper = connections[place.alias]
    if wrapper.connection is None and not _has_tables(place):
        where = "process" if place.shared_memory else "thread"
        raise SnapshotConnectorError(
            f"The in-memory database of {place.title} is not open in this {where}, and nobody else can see it. Take "
            "and restore its snapshots inline, in the process and thread that made it."
        )
    wrapper.ensure_connection()
    yield wrapper.connection


def _has_tables(place: Place) -> bool:
    """Whether a thread of this process has made the in-memory database, and it is one that others can see."""
    if not place.shared_memory:
        return False
    # Not by Django, which never closes such a connection.
    with contextlib.closing(sqlite3.connect(place.name, uri=True)) as connection:
        try:
            return bool(table_names(connection))
        except sqlite3.OperationalError as error:
            return is_locked(error)


@contextlib.contextmanager
def open_private(alias: str, path: Path) -> Iterator[sqlite3.Connection]:
    """A private copy at *path*, with the SQL functions that Django and the project give to connections of *alias*.

    A crafted schema must not be able to call them: ``trusted_schema`` is off, and defensive mode is on where Python
    can set it (3.12).
    """
    with private_wrapper(alias, path) as wrapper:
        yield wrapper.connection


@contextlib.contextmanager
def private_wrapper(alias: str, path: Path) -> Iterator[BaseDatabaseWrapper]:
    """As ``open_private``, but the connection in Django's wrapping."""
    wrapper = connections.create_connection(alias)
    wrapper.settings_dict = {**wrapper.settings_dict, "NAME": str(path), "OPTIONS": {}}
    wrapper.inc_thread_sharing()
    try:
        wrapper.connect()
        distrust_schema(wrapper.connection)
        for setting in ("foreign_keys=OFF", "synchronous=OFF", "cache_size=-32768"):
            wrapper.connection.execute(f"PRAGMA {setting}")
        if sys.version_info >= (3, 12):
            wrapper.connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        yield wrapper
    finally:
        wrapper.close()


def distrust_schema(connection: sqlite3.Connection) -> None:
    """Refuse SQL functions to the schema, unless it can't even be read then: a generated column or an index may use
    one of Django's."""
    connection.execute("PRAGMA trusted_schema=OFF")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if "unsafe use of" not in str(error):
            raise
        connection.execute("PRAGMA trusted_schema=ON")


class Patience:
    """Watches a copy: ends it when the run was cancelled, or when a lock has let nothing through for too long."""

    def __init__(self, place: Place, seconds: float, processes: Processes | None) -> None:
        self._place = place
        self._seconds = seconds
        self._processes = processes
        self._deadline = time.monotonic() + seconds
        self._least: int | None = None

    def __call__(self, status: int, remaining: int, total: int) -> None:
        """Take one report of ``sqlite3.Connection.backup``."""
        if self._ended:
            raise SnapshotCancelled(f"The run was cancelled while {self._place.title} was copied.")
        # A copy that starts again because somebody wrote is no progress, however many pages it copies.
        progress = self._least is None or remaining < self._least
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or not progress:
            self.lost()
        else:
            self._least = remaining
            self._deadline = time.monotonic() + self._seconds

    def lost(self) -> None:
        """One more try found the database locked; raise if it was the last."""
        if self._ended:
            raise SnapshotCancelled(f"The run was cancelled while {self._place.title} was locked.")
        if time.monotonic() >= self._deadline:
            who = f" ({'; '.join(found)})" if (found := holders(self._place)) else ""
            raise SnapshotConnectorError(
                f"The SQLite database of {self._place.title} is locked by another connection{who} and stayed so for "
                f"{self._seconds:g} seconds; it was not changed. End the transaction that holds it, then try again."
            )

    @property
    def _ended(self) -> bool:
        return self._processes is not None and self._processes.ended

    def execute(self, connection: sqlite3.Connection, statement: str) -> list[Any]:
        """Execute *statement*, again and again while the database is locked; return its rows."""
        with impatient(connection):
            while (rows := _rows_unless_locked(connection, statement)) is None:
                self.lost()
                time.sleep(POLL_SECONDS)
        return rows


def holders(place: Place) -> list[str]:
    """Other processes that hold a lock on the database now, as far as Linux tells: ``process 12 (python)``."""
    if place.path is None or not _LOCKS.exists():
        return []
    files = set()
    for suffix in ("", "-shm"):
        with contextlib.suppress(OSError):
            found = os.stat(f"{place.real}{suffix}")  # noqa: PTH116 - nothing is opened
            files.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
    numbers = {
        int(words[words.index("POSIX") + 3])
        for words in map(str.split, _LOCKS.read_text().splitlines())
        if "POSIX" in words and "->" not in words and files.intersection(words)
    }
    return [f"process {number}{_program(number)}" for number in sorted(numbers - {os.getpid(), 0, -1})]


def _program(number: int) -> str:
    with contextlib.suppress(OSError):
        return f" ({Path(f'/proc/{number}/comm').read_text().strip()})"
    return ""


@contextlib.contextmanager
def impatient(connection: sqlite3.Connection) -> Iterator[None]:
    """Let *connection* report a lock at once. SQLite's own waiting sleeps longer and longer, so that a writer that
    commits without a pause would keep it out for ever; whoever uses this tries again every millisecond."""
    connection.execute("PRAGMA busy_timeout=0")
    yield
    connection.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")


def _rows_unless_locked(connection: sqlite3.Connection, statement: str) -> list[Any] | None:
    try:
        return connection.execute(statement).fetchall()
    except sqlite3.OperationalError as error:
        if not is_locked(error):
            raise
        return None


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another connection's lock is the cause."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is the cause: not a database, or a damaged one."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextlib.contextmanager
def explained(place: Place, doing: str, state: str = "") -> Iterator[None]:
    """Turn SQLite's and the system's errors into a ``SnapshotConnectorError`` that names the database."""
    try:
        yield
    except SnapshotError:  # some of which are an OSError too
        raise
    except sqlite3.Error as error:
        raise SnapshotConnectorError(f"SQLite could not {doing} {place.title}: {redact(str(error))}.{state}") from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise SnapshotConnectorError(
            f"Could not {doing} {place.title}: {error.strerror or error}{where}.{state}"
        ) from error


def table_names(connection: sqlite3.Connection) -> list[str]:
    """Every table that holds rows of its own: no views, no virtual tables (their shadow tables are listed)."""
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 AND substr(name, 1, 7) <> 'sqlite_'"
    )
    return sorted(name for (name,) in rows)


def row_counts(connection: sqlite3.Connection) -> dict[str, int]:
    """The number of rows in every table."""
    return {name: count(connection, name) for name in table_names(connection)}


def count(connection: sqlite3.Connection, table: str) -> int:
    """The number of rows in *table*."""
    return int(connection.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0])  # noqa: S608 - quoted


def quoted(name: str) -> str:
    """*name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def pragma(connection: sqlite3.Connection, name: str) -> str | int:
    """The value of one PRAGMA."""
    value: str | int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def integrity_problems(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """What SQLite's own check finds: faults of the file, and rows whose content breaks a rule of their table."""
    problems = _integrity_check(connection)
    if any("unsafe use of" in problem for problem in problems):
        # A CHECK uses a function of Django's; only such a schema gets this trust.
        connection.execute("PRAGMA trusted_schema=ON")
        problems = _integrity_check(connection)
        connection.execute("PRAGMA trusted_schema=OFF")
    content = [problem for problem in problems if problem.startswith(_CONTENT_PROBLEMS)]
    return [problem for problem in problems if problem not in content], content


def _integrity_check(connection: sqlite3.Connection) -> list[str]:
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(100)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else found


def foreign_key_problems(connection: sqlite3.Connection) -> list[str]:
    """One sentence for every table with rows that refer to rows that are not there."""
    try:
        rows = connection.execute("PRAGMA foreign_key_check")
        found: dict[tuple[str, str], int] = {}
        for table, _, parent, _ in rows:
            found[table, parent] = found.get((table, parent), 0) + 1
    except sqlite3.DatabaseError as error:
        return [f"The foreign keys could not be checked: {error}."]
    return [
        f"{number} rows of {table} refer to rows of {parent} that do not exist."
        for (table, parent), number in found.items()
    ]


def shown(problems: Iterable[str]) -> str:
    """The first few of *problems*, for a message."""
    listed = list(problems)
    more = f"; and {len(listed) - _PROBLEMS_SHOWN} more" if len(listed) > _PROBLEMS_SHOWN else ""
    return "; ".join(listed[:_PROBLEMS_SHOWN]) + more


def file_has_header(path: Path) -> bool:
    """Whether the private file at *path* begins as every SQLite database does."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER


def plain_journal(connection: sqlite3.Connection) -> None:
    """Make a private copy one complete file: no write-ahead log beside it, and a header even if it has no tables."""
    if pragma(connection, "page_count") == 0:
        connection.execute(f"PRAGMA user_version={pragma(connection, 'user_version')}")
    mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    if mode != "delete":
        raise sqlite3.OperationalError(f"the private copy stays in journal mode {mode}")
