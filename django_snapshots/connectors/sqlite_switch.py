"""Replaces the content of a live SQLite database, while tables that are to stay keep every row committed to them.

Between the moment that those rows are read and the moment that the new content is committed, nobody else may write.
How that is had depends on the journal mode:

- rollback journal: ``locking_mode=EXCLUSIVE`` keeps one lock from before the reading until after the commit;
- write-ahead log: idle readers keep a shared lock for as long as they are connected, so an exclusive one can't be had.
  There the backup takes the write lock with its first pages, a second connection reads the committed state, and the
  rows are put into the copy while it is being copied, which the backup API follows (changes made through the very
  connection that is its source are applied to what it has copied already);
- in memory: Django's own connection does it all.

When a state is to be kept it is complete and on the disk before the first page of the new one is written. Right after
the lock is had, and before anything is written, *fence* is asked whether this attempt still may: whoever settles it
takes the same lock first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from django_snapshots.connectors import sqlite_labels as labels
from django_snapshots.connectors.sqlite_files import (
    PAGES_PER_STEP,
    POLL_SECONDS,
    Patience,
    Place,
    impatient,
    is_damage,
    open_file,
    open_memory,
    open_private,
    pragma,
    quoted,
)
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.marked import sync
from django_snapshots.processes import Processes

_PADDING = "django_snapshots_padding"


def _reached(phase: str) -> None:
    """Does nothing; tests put a death, or a long sleep, in its place."""


class Switch:
    """One way from a private copy into the live database; used to go forward and, with what was kept, back."""

    def __init__(
        self,
        place: Place,
        processes: Processes,
        seconds: float,
        preserve: Iterable[str],
        *,
        fence: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """*fence* raises if this attempt has no right to change the live database any more."""
        self._place = place
        self._processes = processes
        self._seconds = seconds
        self._preserve = sorted(preserve)
        self._fence = fence
        self._report = report
        self._come = self._go = ""

    def replace(self, staged_path: Path, kept_path: Path, *, label: str = "", without: str = "") -> None:
        """Make the content of *staged_path* the live content; what it replaced is in *kept_path* afterwards.

        The new content carries *label*, and every label of the old one but *without*. When this raises, the live
        database is as it was.
        """
        self._come, self._go = label, without
        if label and self._place.path is not None:
            begin(self._place, label, self._fence, self._patience())
            _reached("begun")
        opened = open_memory(self._place) if self._place.path is None else open_file(self._place)
        with opened as live, open_private(self._place.alias, staged_path) as staged:
            mode, page_size = (self._ask(live, name) for name in ("journal_mode", "page_size"))
            if mode in ("wal", "memory") and page_size != pragma(staged, "page_size"):
                # Such a database refuses another page size than its own.
                staged.execute(f"PRAGMA page_size={page_size}")
                staged.execute("VACUUM")
            if self._place.path is None:
                self._in_memory(live, staged, kept_path)
                return
            # Whatever the file's other users chose: a switch must be on the disk as a whole.
            self._patience().execute(live, "PRAGMA synchronous=FULL")
            if mode == "wal":
                self._write_ahead_log(live, staged, kept_path)
            else:
                self._rollback_journal(live, staged, kept_path)
        _reached("switched")

    def _ask(self, live: sqlite3.Connection, name: str) -> str | int:
        value: str | int = self._patience().execute(live, f"PRAGMA {name}")[0][0]
        return value

    def _rollback_journal(self, live: sqlite3.Connection, staged: sqlite3.Connection, kept: Path) -> None:
        # The lock first, then its keeping: a connection that keeps locks would also keep a shared one that it got on
        # the way, and stand in the way of the very writer that it waits for.
        self._patience().execute(live, "BEGIN EXCLUSIVE")
        live.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        live.execute("COMMIT")
        self._carry_and_keep(live, staged, kept)
        progress = _AfterFirstPages(lambda: _reached("copying"), self._patience())
        staged.backup(live, pages=PAGES_PER_STEP, progress=progress, sleep=POLL_SECONDS)
        # Closing the connection, which the caller does, gives the lock back.

    def _write_ahead_log(self, live: sqlite3.Connection, staged: sqlite3.Connection, kept: Path) -> None:
        with open_file(self._place) as reader, _several_pages(staged) as drop_padding:

            def hold_the_lock() -> None:
                drop_padding()
                self._carry_and_keep(reader, staged, kept)
                _reached("copying")

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
        self._carry_and_keep(live, staged, kept)
        staged.backup(live, pages=-1, progress=self._patience(), sleep=POLL_SECONDS)

    def _carry_and_keep(self, live: sqlite3.Connection, staged: sqlite3.Connection, kept: Path) -> None:
        """What is done while the lock is held and nothing of the live database is changed yet."""
        self._fence()
        _reached("locked")
        try:
            carry(live, staged, self._preserve)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            if all(_can_be_read(live, table) for table in self._preserve):
                raise SnapshotPreflightError(
                    f"What should have come into {self._place.title} is damaged ({error}), so the rows of "
                    f"{', '.join(self._preserve)} could not be taken along, and nothing was changed."
                ) from error
            self._report(
                f"{self._place.title} is damaged, so the rows of {', '.join(self._preserve)} could not be taken along "
                f"({error}). They are in the state that was replaced, as far as they can be read."
            )
        labels.write(staged, labels.after(self._labels(live), come=self._come, go=self._go))
        copied(live, kept, self._patience(), durably=bool(self._come))
        _reached("kept")

    def _labels(self, live: sqlite3.Connection) -> set[str]:
        try:
            return labels.read(live)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return set()

    def _patience(self) -> Patience:
        return Patience(self._place, self._seconds, self._processes)


def begin(place: Place, mark: str, fence: Callable[[], None], patience: Patience) -> None:
    """Label the live database as the one which the attempt *mark* is about to change, in a transaction of its own.

    *fence* raises if that has no right to change it any more.
    """
    with open_file(place) as live:
        patience.execute(live, "PRAGMA synchronous=FULL")
        patience.execute(live, "BEGIN IMMEDIATE")
        fence()
        labels.write(live, {*labels.read(live), labels.begun(mark)})
        patience.execute(live, "COMMIT")


def copied(live: sqlite3.Connection, path: Path, patience: Patience, *, durably: bool) -> None:
    """Copy the live content to *path*, which appears complete and, if it is to outlive us, on the disk."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as kept:
        kept.execute("PRAGMA synchronous=OFF")
        live.backup(kept, pages=PAGES_PER_STEP, progress=patience, sleep=POLL_SECONDS)
        kept.execute("PRAGMA journal_mode=DELETE").fetchall()
    if durably:
        sync_file(part)
    part.rename(path)
    if durably:
        sync(path.parent)


def sync_file(path: Path) -> None:
    """Put the content of the private file *path* on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _can_be_read(live: sqlite3.Connection, table: str) -> bool:
    try:
        for _ in live.execute(f"SELECT * FROM {quoted(table)} NOT INDEXED"):  # noqa: S608 - quoted
            pass
    except sqlite3.DatabaseError as error:
        return not is_damage(error)  # else there is no such table
    return True


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
