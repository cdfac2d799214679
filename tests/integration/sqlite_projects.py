"""A project on SQLite files for the tests of the engine itself: cheap to make, and every way in is a real process."""

from __future__ import annotations

import atexit
import functools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.db import connections

from django_snapshots.exceptions import SnapshotStorageError
from django_snapshots.storage import LocalFileSystemBackend
from django_snapshots.transfer import Target
from tests.projects import Project

BROKEN_CONNECTOR = "tests.integration.sqlite_projects.BrokenConnector"


class BrokenConnector:
    """A user's connector whose dump writes a little and then fails as such tools do."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        from django_snapshots.exceptions import SnapshotConnectorError

        dest.write_bytes(b"half a dump")
        raise SnapshotConnectorError(f"shopdump failed for {db_alias!r}: ORA-00942 table does not exist")

    def restore(self, db_alias: str, src: Path) -> None:
        raise NotImplementedError


class CopyConnector:
    """A user's connector of two methods, which copies the file."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        shutil.copyfile(connections[db_alias].settings_dict["NAME"], dest)
        return {"format": "sqlite3"}

    def restore(self, db_alias: str, src: Path) -> None:
        connections[db_alias].close()
        shutil.copyfile(src, connections[db_alias].settings_dict["NAME"])


class StorageThatIsAway(LocalFileSystemBackend):
    """One that answers nothing, like a bucket behind a network that is down."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("list", "recursive_list", "exists", "read", "stream_read", "write", "stream_write", "delete"):
            raise SnapshotStorageError("The storage does not answer.")
        return super().__getattribute__(name)


class StorageThatSpoilsSafetyCopies(LocalFileSystemBackend):
    """One that gives back another byte of what a safety copy holds."""

    def stream_read(self, path: str) -> Iterator[bytes]:
        for chunk in super().stream_read(path):
            yield chunk[:-1] + bytes([chunk[-1] ^ 1]) if path.startswith("safety-") and ".zst" in path else chunk


class StorageThatIsFull(LocalFileSystemBackend):
    """One on a disk with next to no room."""

    def free_space(self) -> int:
        return 1


class SilentKind:
    """A kind of the project's own, of which it can't be told what restores have left."""

    type = "silent"

    def subjects(self) -> list[str]:
        return ["silent"]

    def target(self, subject: str) -> Target:
        return Target(name="silent", description="the silent one", empty=False)

    def keeps(self, subject: str) -> bool:
        return True

    def beside(self, subject: str) -> Any:
        raise ConnectionError("the silent one does not answer")

    def _nothing(self, *_: Any) -> Any:
        raise NotImplementedError

    open_dump = prepare = settle = bring_back = remove = _nothing


@functools.cache
def _migrated() -> Path:
    """A directory with a migrated database in a file; made once for all tests."""
    directory = Path(tempfile.mkdtemp(prefix="snapshots-template-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    sqlite_project(directory, migrated=False, aliases=("default",)).migrate()
    return directory


def sqlite_project(
    directory: Path, *, migrated: bool = True, aliases: tuple[str, ...] = ("default", "other"), **snapshots: Any
) -> Project:
    """A project in *directory* with SQLite files, and an order and a picture in it; its PROJECT is ``tests``."""
    databases = {
        alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / f"{alias}.sqlite3")}
        for alias in aliases
    }
    project = Project(directory=directory, databases=databases, snapshots=snapshots)
    (project.media / "picture.png").write_bytes(b"\x89PNG picture")
    if migrated:
        for alias in aliases:
            shutil.copyfile(_migrated() / "default.sqlite3", directory / f"{alias}.sqlite3")
            write(project, alias, f"order in {alias}")
    return project


def path(project: Project, alias: str = "default") -> Path:
    """The file of *alias*."""
    return Path(project.databases[alias]["NAME"])


def query(project: Project, alias: str, statement: str, *parameters: Any) -> list[Any]:
    """Run one statement in the file of *alias*; return its rows."""
    connection = sqlite3.connect(path(project, alias))
    try:
        with connection:
            return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


def write(project: Project, alias: str, name: str) -> None:
    """Make *name* the one content of *alias*'s groups."""
    query(project, alias, "DELETE FROM auth_group")
    query(project, alias, "INSERT INTO auth_group (name) VALUES (?)", name)


def content(project: Project, alias: str = "default") -> list[str]:
    """What ``write`` has written."""
    return [name for (name,) in query(project, alias, "SELECT name FROM auth_group ORDER BY name")]


def targets(project: Project, *aliases: str) -> list[str]:
    """What confirms the replacement of these aliases and of the media."""
    return [str(path(project, alias)) for alias in aliases or project.databases] + [str(project.media)]


def journal_tables(project: Project, alias: str) -> set[str]:
    """The journal's tables that are in *alias*."""
    found = query(project, alias, "SELECT name FROM sqlite_master WHERE name LIKE 'django_snapshots%' AND type='table'")
    return {name for (name,) in found}


def without_journal(project: Project) -> Project:
    """The same project before this app was ever migrated."""
    for alias in project.databases:
        for table in ("lock", "housekeeping", "step", "run"):
            query(project, alias, f"DROP TABLE django_snapshots_{table}")
        query(project, alias, "DELETE FROM django_migrations WHERE app='django_snapshots'")
    return project
