"""One attempt at a restore in a process of its own, which dies or sleeps where it is told.

``kept#2`` is the second time that it gets to ``kept``: while it rolls back.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.integration.forked import Forked


def start(file: Path, action: str, what: str | Path, mark: str, phase: str, sent: int, *tables: str) -> Forked:
    """A child that sends itself *sent* when it reaches *phase*; it prints what came of it if it lives on."""
    arguments = (str(file), action, str(what), mark, phase, str(int(sent)), *tables)
    return Forked("tests.integration.sqlite_attempt", *arguments)


def load() -> None:
    """What takes time and needs no settings."""
    import django.db.backends.sqlite3.base  # noqa: F401

    from django_snapshots.connectors import sqlite  # noqa: F401


def _configure(file: str) -> None:
    import django
    from django.conf import settings

    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=[], USE_TZ=True)
    django.setup()


def main(file: str, action: str, what: str, mark: str, phase: str, sent: str, *tables: str) -> None:
    _configure(file)
    from django_snapshots.connectors import sqlite_files, sqlite_rows, sqlite_switch, sqlite_ways
    from django_snapshots.connectors.sqlite import SQLiteConnector
    from django_snapshots.exceptions import SnapshotError
    from django_snapshots.processes import Processes
    from django_snapshots.temporary import private_directory
    from django_snapshots.transfer import RestoreRequest, Source

    wanted, _, time = phase.partition("#")
    met: list[str] = []

    def reached(name: str) -> None:
        met.append(name)
        if name == wanted and met.count(name) == int(time or 1):
            os.kill(os.getpid(), int(sent))

    sqlite_rows._reached = sqlite_switch._reached = sqlite_ways._reached = reached
    sqlite_switch.PAGES_PER_STEP = sqlite_files.PAGES_PER_STEP = 8
    Open = Callable[[sqlite_files.Place], AbstractContextManager[sqlite3.Connection]]

    def with_small_cache(real: Open) -> Open:
        @contextlib.contextmanager
        def opened(place: sqlite_files.Place) -> Iterator[sqlite3.Connection]:
            with real(place) as connection:
                # With so small a cache the pages go to the file, and before them the journal to the disk, long before
                # the commit: then a death leaves a hot journal.
                connection.execute("PRAGMA cache_size=4")
                yield connection

        return opened

    sqlite_switch.open_file = with_small_cache(sqlite_switch.open_file)
    sqlite_rows.open_live = with_small_cache(sqlite_rows.open_live)
    connector = SQLiteConnector(lock_timeout=20)
    with Processes() as processes:
        request = RestoreRequest(
            processes=processes,
            mark=mark,
            about={"run": mark},
            temporary_directory=private_directory,
            preserve_tables=frozenset({"django_snapshots_run"}),
            tables=frozenset(tables if action == "restore" else ()),
        )
        content = Path(what).read_bytes() if action == "restore" else b""
        source = Source(filename="dump", metadata={}, open=lambda: iter([content]))
        try:
            if action == "restore":
                prepared = connector.prepare("default", source, request)
            else:
                prepared = connector.bring_back("default", what, request)
            reached("prepared")
            prepared.check()
            try:
                prepared.switch()
                reached("before discard")
                if time or wanted == "before rolling back":
                    reached("before rolling back")
                    prepared.roll_back()
            finally:
                prepared.discard()
            print("done", flush=True)
        except SnapshotError as error:
            print(type(error).__name__, error, flush=True)
