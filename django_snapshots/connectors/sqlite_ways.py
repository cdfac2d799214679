"""The ways in which a private copy becomes the live SQLite database, and the way back from each.

- a database is there: its content is replaced in one transaction;
- only some tables are wanted: their rows are replaced in one transaction (``sqlite_rows``);
- the file is missing: the new one appears under its name by one link;
- the file is there and is no database: the new one takes its name by one rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from django_snapshots.connectors import sqlite_files as files
from django_snapshots.connectors import sqlite_kept, sqlite_labels
from django_snapshots.connectors.sqlite_files import Patience, Place
from django_snapshots.connectors.sqlite_kept import BROKEN, KEPT, LOGS, STAGED
from django_snapshots.connectors.sqlite_rows import RowSwitch
from django_snapshots.connectors.sqlite_switch import Switch, sync_file
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.marked import Marked, sync
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.transfer import CHUNK_SIZE, RestoreRequest

_UNDONE = "undone.sqlite3"
_BACK = "back.sqlite3"


def _reached(phase: str) -> None:
    """Does nothing; tests put a death, or a long sleep, in its place."""


class Workshop:
    """What both directions of a switch use: where things are, and the right to change the live file.

    Without a mark there is no directory beside the file, and nothing is kept.
    """

    def __init__(
        self, place: Place, request: RestoreRequest, directory: Path, marked: Marked | None, seconds: float
    ) -> None:
        self.place = place
        self.request = request
        self.directory = directory
        self.marked = marked
        self.seconds = seconds
        self.switch = Switch(
            place, request.processes, seconds, request.preserve_tables, fence=self.fence, report=request.report
        )
        self.rows = RowSwitch(
            place, request.processes, seconds, request.tables, request.preserve_tables, fence=self.fence
        )

    @property
    def label(self) -> str:
        return self.marked.mark if self.marked else ""

    def fence(self) -> None:
        """Raise ``SnapshotBusyError`` if somebody has settled this attempt."""
        if self.marked is not None:
            self.marked.require()

    def file(self, name: str) -> Path:
        return self.directory / name

    def patience(self) -> Patience:
        return Patience(self.place, self.seconds, self.request.processes)


class Way(Protocol):
    """How the live database was replaced."""

    def back(self) -> None:
        """Bring the replaced state back."""


def switched(workshop: Workshop) -> Way:
    """Make the staged copy the live database. When this raises, that is as it was; but for ``SnapshotUnsettled``, or
    without a mark the sentence that says so, if the disk does not confirm a new file's name."""
    place = workshop.place
    workshop.fence()
    if workshop.request.tables:
        workshop.rows.replace(workshop.file(STAGED), workshop.file(KEPT), label=workshop.label)
        return _Rows(workshop)
    if place.path is not None:
        if not place.real.exists() and _create(workshop):
            return _Created(workshop)
        if workshop.marked is not None and sqlite_kept.is_broken(place, workshop.patience()):
            _replace_broken(workshop, workshop.marked)
            return _Broken(workshop, workshop.marked)
    workshop.switch.replace(workshop.file(STAGED), workshop.file(KEPT), label=workshop.label)
    return _Replaced(workshop)


class _Replaced:
    """The content of a database."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def back(self) -> None:
        self._workshop.fence()
        # A copy goes back, because rows of preserved tables are written into it: what is kept stays as it is.
        kept, back = self._workshop.file(KEPT), self._workshop.file(_BACK)
        shutil.copyfile(kept, back)
        self._workshop.switch.replace(back, self._workshop.file(_UNDONE), without=self._workshop.label)


class _Rows:
    """The rows of some tables."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def back(self) -> None:
        workshop = self._workshop
        workshop.fence()
        workshop.rows.replace(workshop.file(KEPT), workshop.file(_UNDONE), without=workshop.label)


class _Created:
    """A file that was missing."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def back(self) -> None:
        # By renames into the directory: they fail, and change nothing, when somebody has settled this attempt.
        self._workshop.fence()
        path = self._workshop.place.real
        for suffix in ("", *LOGS):
            with contextlib.suppress(FileNotFoundError):
                _move(_with(path, suffix), self._workshop.file(f"{_UNDONE}{suffix}"), self._workshop)
        sync(path.parent)


class _Broken:
    """A file that was no database."""

    def __init__(self, workshop: Workshop, marked: Marked) -> None:
        self._workshop = workshop
        self._marked = marked

    def back(self) -> None:
        self._workshop.fence()
        path, directory = self._workshop.place.real, self._workshop.directory
        (directory / _UNDONE).unlink(missing_ok=True)
        os.link(path, directory / _UNDONE)
        for suffix in LOGS:
            with contextlib.suppress(FileNotFoundError):
                _with(path, suffix).rename(directory / f"{_UNDONE}{suffix}")
        (directory / BROKEN).rename(path)
        sqlite_kept.give_logs_back(self._workshop.place, self._marked)
        sync(path.parent)


def _create(workshop: Workshop) -> bool:
    """Give a missing file its content, whole, under a name that nobody has yet; ``False`` if there is a file."""
    path = workshop.place.real
    if not path.parent.is_dir():
        raise SnapshotConnectorError(f"The directory {path.parent} does not exist; make it (or mount it) first.")
    with _fresh_file(workshop) as fresh:
        if workshop.marked is not None:
            _keep_nothing(workshop, workshop.marked)
        _set_aside(path, workshop)
        _reached("fresh")
        try:
            os.link(fresh, path)
        except FileExistsError:
            _forget_nothing(workshop)
            return False
        except FileNotFoundError:
            workshop.fence()
            raise
    _confirm(workshop)
    _reached("switched")
    return True


def _keep_nothing(workshop: Workshop, marked: Marked) -> None:
    """An empty database stands for the file that was missing."""
    with contextlib.closing(sqlite3.connect(workshop.file(KEPT), isolation_level=None)) as empty:
        files.plain_journal(empty)
    sync_file(workshop.file(KEPT))
    marked.write_record({**marked.read_record(), "missing": True})


def _forget_nothing(workshop: Workshop) -> None:
    if workshop.marked is not None:
        # While it is said that the file was missing: afterwards its logs would be given to the one that is there now.
        sqlite_kept.give_logs_back(workshop.place, workshop.marked)
        # First: what is kept, and not said to stand for a missing file, is taken for the state of another file.
        workshop.file(KEPT).unlink()
        workshop.marked.write_record({**workshop.marked.read_record(), "missing": False})


@contextlib.contextmanager
def _fresh_file(workshop: Workshop) -> Iterator[Path]:
    """The staged copy as a new file, labelled and on the disk, on the file system of its place."""
    path = workshop.place.real
    if workshop.marked is not None:
        with files.open_private(workshop.place.alias, workshop.file(STAGED)) as staged:
            sqlite_labels.write(staged, {workshop.label})
        fresh = workshop.file("fresh.sqlite3")
        _copy_durably(workshop.file(STAGED), fresh)
        yield fresh
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        return
    # A directory of its own, so that nobody can meet a half-written file and the link stays on one file system.
    with tempfile.TemporaryDirectory(prefix=".django-snapshots-", dir=path.parent) as name:
        fresh = Path(name) / path.name
        _copy_durably(workshop.file(STAGED), fresh)
        yield fresh


def _replace_broken(workshop: Workshop, marked: Marked) -> None:
    path, directory = workshop.place.real, workshop.directory
    workshop.request.report(
        f"{path} could not be read as a database. It was replaced as a file, and is kept as it was in {directory}."
    )
    with _fresh_file(workshop) as fresh:
        shutil.copymode(path, fresh)
        os.link(path, directory / BROKEN)
        for suffix in LOGS:
            with contextlib.suppress(FileNotFoundError):
                _move(_with(path, suffix), directory / f"{BROKEN}{suffix}", workshop)
        marked.sync()
        sync(path.parent)
        _reached("fresh")
        _move(fresh, path, workshop)
    _confirm(workshop)
    _reached("switched")


def _confirm(workshop: Workshop) -> None:
    """Have the disk confirm that the file has its name. Where it fails, whoever settles tells what became of it."""
    try:
        sync(workshop.place.real.parent)
    except OSError as error:
        kind = SnapshotConnectorError if workshop.marked is None else SnapshotUnsettled
        raise kind(
            f"The file of {workshop.place.title} was put in place, but the disk did not confirm it: {error}."
        ) from error


def _move(origin: Path, destination: Path, workshop: Workshop) -> None:
    try:
        origin.rename(destination)
    except FileNotFoundError:
        workshop.fence()
        raise


def _set_aside(path: Path, workshop: Workshop) -> None:
    """Rename logs of a database file that is gone: SQLite would take them for the new file's own.

    Under a mark they go into the directory: an attempt that slept finds that gone, and can't take away the log of a
    database that somebody has made since. A log is looked at before it is seen that there is no file: what is under its
    name, and another one, after a file has come is the log of that.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for suffix in LOGS:
        orphan = _with(path, suffix)
        seen = _which(orphan)
        if path.exists():
            return
        if seen is None:
            continue
        aside = _with(path, f"{suffix}.orphan-{stamp}")
        if workshop.marked is not None:
            aside = workshop.file(f"{BROKEN}{suffix}")
        _reached("looked")
        with contextlib.suppress(FileNotFoundError):  # who makes a database removes such a log himself
            _move(orphan, aside, workshop)
            if path.exists() and _which(aside) != seen:
                os.link(aside, orphan)
                aside.unlink()
                return
            workshop.request.report(f"{orphan} belonged to a database file that is gone; it is now {aside}.")


def _which(log: Path) -> tuple[int, int] | None:
    """Which file it is; a number alone may have been given again."""
    with contextlib.suppress(FileNotFoundError):
        found = log.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _copy_durably(source: Path, destination: Path) -> None:
    """Copy with the permissions that SQLite gives a new database: 0644 less the umask."""
    descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file, source.open("rb") as content:
        shutil.copyfileobj(content, file, CHUNK_SIZE)
        file.flush()
        os.fsync(file.fileno())
