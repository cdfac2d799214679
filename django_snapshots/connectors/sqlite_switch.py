"""Replaces the content of a live SQLite database, while tables that are to stay keep every row committed to them.

Between the moment that those rows are read and the moment that the new content is committed, nobody else may write.
How that is had depends on the journal mode:

- rollback journal: ``locking_mode=EXCLUSIVE`` keeps one lock from before the reading until after the commit;
- write-ahead log: idle readers keep a shared lock for as long as they are connected, so an exclusive one can't be had.
  There the backup takes the write lock with its first pages, a second connection reads the committed state, and the
  rows are put into the copy while it is being copied, which the backup API follows (changes made through the very
  connection that is its source are applied to what it has copied already);
- in memory: Django's own connection does it all.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from django_snapshots.connectors.sqlite_files import (
    PAGES_PER_STEP,
    POLL_SECONDS,
    Patience,
    Place,
    impatient,
    open_file,
    open_memory,
    open_private,
    pragma,
    quoted,
)
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Processes

_PADDING = "django_snapshots_padding"


class Switch:
    """One way from a private copy into the live database; used to go forward and, with what was kept, back."""

    def __init__(self, place: Place, processes: Processes, seconds: float, preserve: Iterable[str]) -> None:
        self._place = place
        self._processes = processes
        self._seconds = seconds
        self._preserve = sorted(preserve)

    def replace(self, staged_path: Path, kept_path: Path) -> None:
        """Make the content of *staged_path* the live content; what it replaced is in *kept_path* afterwards.

        When this raises, the live database is as it was.
        """
        opened = open_memory(self._place) if self._place.path is None else open_file(self._place)
        with opened as live, open_private(self._place.alias, staged_path) as staged:
            mode, page_size = (self._ask(live, name) for name in ("journal_mode", "page_size"))
            if mode in ("wal", "memory") and page_size != pragma(staged, "page_size"):
                # Such a database refuses another page size than its own.
                staged.execute(f"PRAGMA page_size={page_size}")
                staged.execute("VACUUM")
            if self._place.path is None:
                self._in_memory(live, staged, kept_path)
            elif mode == "wal":
                self._write_ahead_log(live, staged, kept_path)
            else:
                self._rollback_journal(live, staged, kept_path)

    def _ask(self, live: sqlite3.Connection, name: str) -> str | int:
        value: str | int = self._patience().execute(live, f"PRAGMA {name}")[0][0]
        return value

    def _rollback_journal(self, live: sqlite3.Connection, staged: sqlite3.Connection, kept: Path) -> None:
        # The lock first, then its keeping: a connection that keeps locks would also keep a shared one that it got on
        # the way, and stand in the way of the very writer that it waits for.
        self._patience().execute(live, "BEGIN EXCLUSIVE")
        live.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        live.execute("COMMIT")
        carry(live, staged, self._preserve)
        self._keep(live, kept)
        staged.backup(live, pages=PAGES_PER_STEP, progress=self._patience(), sleep=POLL_SECONDS)
        # Closing the connection, which the caller does, gives the lock back.

    def _write_ahead_log(self, live: sqlite3.Connection, staged: sqlite3.Connection, kept: Path) -> None:
        with open_file(self._place) as reader, _several_pages(staged) as drop_padding:

            def hold_the_lock() -> None:
                drop_padding()
                carry(reader, staged, self._preserve)
                self._keep(reader, kept)

            pages = min(PAGES_PER_STEP, int(pragma(staged, "page_count")) - 1)
            progress = _AfterFirstPages(hold_the_lock, self._patience())
            with impatient(live):
                staged.backup(live, pages=pages, progress=progress, sleep=POLL_SECONDS)
            progress.require()
        with contextlib.suppress(sqlite3.Error):  # only tidies up; readers may stand in the way
            live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _in_memory(self, live: sqlite3.Connection, staged: sqlite3.Connection, kept: Path) -> None:
        if live.in_transaction:
            raise SnapshotConnectorError(
                f"A transaction is open on {self._place.title}; it was not changed. Restore outside of atomic blocks."
            )
        carry(live, staged, self._preserve)
        self._keep(live, kept)
        staged.backup(live, pages=-1, progress=self._patience(), sleep=POLL_SECONDS)

    def _keep(self, live: sqlite3.Connection, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as kept:
            kept.execute("PRAGMA synchronous=OFF")
            live.backup(kept, pages=PAGES_PER_STEP, progress=self._patience(), sleep=POLL_SECONDS)
            kept.execute("PRAGMA journal_mode=DELETE").fetchall()

    def _patience(self) -> Patience:
        return Patience(self._place, self._seconds, self._processes)


class _AfterFirstPages:
    """Does something once, when the first pages went over and the target's write lock is therefore held."""

    def __init__(self, action: Callable[[], None], patience: Patience) -> None:
        self._action = action
        self._patience = patience
        self._done = False

    def __call__(self, status: int, remaining: int, total: int) -> None:
        self._patience(status, remaining, total)
        if status == sqlite3.SQLITE_OK and not self._done:
            self._action()
            self._done = True

    def require(self) -> None:
        """Raise unless it was done; the code above sees to it that a copy never ends with its first step."""
        if not self._done:
            raise sqlite3.OperationalError("the copy ended before the tables that are to stay were read")


@contextlib.contextmanager
def _several_pages(staged: sqlite3.Connection) -> Iterator[Callable[[], None]]:
    """Give a nearly empty database a second page, so that copying it takes two steps; yields what drops it."""
    if int(pragma(staged, "page_count")) > 1:
        yield lambda: None
        return
    staged.execute(f"CREATE TABLE {_PADDING} (padding)")

    def drop() -> None:
        staged.execute(f"DROP TABLE {_PADDING}")

    yield drop


def carry(live: sqlite3.Connection, staged: sqlite3.Connection, tables: Iterable[str]) -> None:
    """Make *tables* in *staged* what they are in *live*: definition, rows, sequence, indexes and triggers.

    A table that *live* doesn't have is left as it is.
    """
    with _trusting(staged):
        staged.execute("BEGIN")
        try:
            for table in tables:
                _carry_table(live, staged, table)
        except BaseException:
            staged.execute("ROLLBACK")
            raise
        staged.execute("COMMIT")


@contextlib.contextmanager
def _trusting(staged: sqlite3.Connection) -> Iterator[None]:
    """Let the carried tables use SQL functions. Their definitions are the live database's; nothing else is evaluated.

    A JSONField's CHECK calls json_valid, which SQLite 3.40 refuses to a schema that isn't trusted.
    """
    before = pragma(staged, "trusted_schema")
    staged.execute("PRAGMA trusted_schema=ON")
    try:
        yield
    finally:
        staged.execute(f"PRAGMA trusted_schema={before}")


def _carry_table(live: sqlite3.Connection, staged: sqlite3.Connection, table: str) -> None:
    definitions = live.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'table' DESC, rowid",
        [table],
    ).fetchall()
    if not definitions:
        return
    staged.execute(f"DROP TABLE IF EXISTS {quoted(table)}")
    staged.execute(definitions[0][0])
    _carry_rows(live, staged, table)
    _carry_sequence(live, staged, table)
    for (definition,) in definitions[1:]:
        staged.execute(definition)


def _carry_rows(live: sqlite3.Connection, staged: sqlite3.Connection, table: str) -> None:
    columns = [row[1] for row in live.execute(f"PRAGMA table_xinfo({quoted(table)})") if row[6] == 0]
    # A plus sign makes a column an expression, for which Django's connections have no converters.
    wanted = ", ".join(f"+{quoted(column)} AS c{number}" for number, column in enumerate(columns))
    names = ", ".join(map(quoted, columns))
    marks = ", ".join("?" * len(columns))
    rows = live.execute(f"SELECT {wanted} FROM {quoted(table)}")  # noqa: S608 - quoted names
    staged.executemany(f"INSERT INTO {quoted(table)} ({names}) VALUES ({marks})", rows)  # noqa: S608


def _carry_sequence(live: sqlite3.Connection, staged: sqlite3.Connection, table: str) -> None:
    if not live.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return
    row = live.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", [table]).fetchone()
    if row:
        staged.execute("DELETE FROM sqlite_sequence WHERE name = ?", [table])
        staged.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [table, row[0]])
