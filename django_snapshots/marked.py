"""Directories that a restore leaves beside a file or a directory that it replaces.

The directory's name says all that decides: whose it is (the mark) and how far it has come.

::

    <prefix><mark>            an attempt builds here, or has built here and was not settled yet
    <prefix><mark>.settling   somebody is finding out what came of the attempt, or died while doing so
    <prefix><mark>.kept       it holds a state that was replaced
    <prefix><mark>.gone       it is to be removed; nobody needs it

A name changes by one rename, which is on the disk before anything relies on it. Whoever settles an attempt renames its
directory first. So an attempt that slept meanwhile fails at its next step: everything that it moves into place lies
below the old name, which is no longer there.

The directory is private (0700) and belongs to the user that made it. Nobody else settles it, root neither: what
its owner may swap for a link under his hands would be moved with his rights. But he doesn't take it for nothing either.

It is locked (flock(2)) by the process that works with it, for as long as that lives. The lock only tells whether it is
in use; it decides nothing, because a process that is stopped has it too. A record (JSON) says what was replaced, by
which restore and when. It is read as if a stranger had written it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotBusyError,
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.replaced import Beside
from django_snapshots.temporary import empty, here, locked

PREFIX = ".django-snapshots-"
"""Begins every name that this module gives."""
_MARK = re.compile(r"[0-9a-z_]{1,40}")
_ANY_NAME = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{8}}-[0-9a-z_]{{1,40}}(\.settling|\.kept|\.gone)?")
_RECORD = "record.json"
_RECORD_AT_MOST = 64 * 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Stage(StrEnum):
    """How far a directory has come: the end of its name."""

    BUILDING = ""
    SETTLING = ".settling"
    KEPT = ".kept"
    GONE = ".gone"


def key(name: str) -> str:
    """Eight digits that stand for *name* in the name of a directory."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def is_name(name: str) -> bool:
    """Whether *name* is one that this module gives to a directory."""
    return _ANY_NAME.fullmatch(name) is not None


def inode(path: Path) -> int | None:
    """The number of the file; ``None`` if it is missing."""
    try:
        return path.lstat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def where_we_are(parent: Path | None = None) -> Mapping[str, Any]:
    """What tells a later process whether it looks at the same disks as this one (``RestoreRequest.note``).

    *parent* is the directory that holds the target: one on which no disk is mounted any more is another one.
    """
    host, boot = here()
    return {"host": host, "boot": boot, "parent": inode(parent) if parent else None}


def was_here(noted: Mapping[str, Any], parent: Path | None = None) -> bool:
    """Whether an attempt that noted *noted* worked on this machine, and on the disk which holds *parent* now; one that
    noted nothing has worked nowhere."""
    host, boot = here()
    if parent is not None and noted.get("parent") not in (None, inode(parent)):
        return False
    return not noted or noted.get("host") == host or noted.get("boot") == boot


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Where the directories of one target are, and how their names begin."""

    parent: Path
    prefix: str

    def path(self, mark: str, stage: Stage = Stage.BUILDING) -> Path:
        """The directory of *mark*. Raises ``SnapshotConfigurationError`` for a mark that can't be part of a name."""
        if not _MARK.fullmatch(mark):
            raise SnapshotConfigurationError(f"{mark!r} is no mark of a restore: 1 to 40 of 0-9, a-z and _.")
        return self.parent / f"{self.prefix}{mark}{stage}"

    def make(self, mark: str, record: Mapping[str, Any]) -> Marked:
        """A new directory, locked, with *record* in it. Raises ``OSError``, ``SnapshotBusyError``, and
        ``SnapshotPreflightError`` where the file system gives it another owner or mode."""
        path = self.path(mark)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise SnapshotBusyError(f"{path} is there already: another process restores with the same mark.") from None
        try:
            _require_private(path)
            marked = self._opened(mark)
            marked.write_record(record)
        except FileNotFoundError:
            raise SnapshotBusyError(
                f"{path} is not there any more: another process has ended this restore. It has changed nothing."
            ) from None
        except BaseException:
            with contextlib.suppress(OSError):
                remove_directory(path)
            raise
        sync(self.parent)
        return marked

    def take(self, mark: str, stage: Stage = Stage.BUILDING) -> Marked | None:
        """The directory that is there, without its lock; ``None`` if there is none, or one that isn't this user's.

        It is opened, so that it can be told from any that takes its name later.
        """
        return self._opened(mark, stage, lock=False) if _is_ours(self.path(mark, stage)) else None

    def refuse_of_others(self, mark: str) -> None:
        """Raise ``SnapshotBusyError`` if there is something of *mark* that ``take`` passes over, or that can't be seen.

        To take it for nothing would say of a target that was switched that it was not, and fence nobody.
        """
        for stage in Stage:
            if why := _why_not_ours(self.path(mark, stage)):
                raise SnapshotBusyError(why)

    def _opened(self, mark: str, stage: Stage = Stage.BUILDING, *, lock: bool = True) -> Marked:
        descriptor = os.open(self.path(mark, stage), _DIRECTORY)
        if lock:
            with contextlib.suppress(OSError):  # a file system without locks: it is never seen to be in use
                locked(descriptor)
        return Marked(self, mark, stage, descriptor)

    def relabel(self, mark: str, stage: Stage, new_mark: str, new_stage: Stage = Stage.BUILDING) -> Marked:
        """Give the directory of *mark* another one, in one rename. Raises ``SnapshotNotFoundError``."""
        target = self.path(new_mark, new_stage)
        if target.exists():
            raise SnapshotBusyError(f"{target} is there already: another process restores with the same mark.")
        try:
            self.path(mark, stage).rename(target)
        except FileNotFoundError:
            raise SnapshotNotFoundError(f"{self.path(mark, stage)} is not there any more.") from None
        sync(self.parent)
        return self._opened(new_mark, new_stage)

    def look(self) -> tuple[list[tuple[str, Stage]], list[Stranger]]:
        """Every mark that has a directory of this user here, and how far it has come; and what may be one, too, and
        isn't this user's to look into."""
        ours, strangers = [], []
        try:
            with os.scandir(self.parent) as entries:
                names = sorted(entry.name for entry in entries if entry.name.startswith(self.prefix))
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        except PermissionError:
            why = f"{self.parent} can't be listed by user number {os.geteuid()}; let this user read it."
            return [], [Stranger(mark="", stage=None, path=self.parent, why=why)]
        for name in names:
            mark, dot, end = name.removeprefix(self.prefix).partition(".")
            stage = next((one for one in Stage if one == dot + end), None)
            # An upload may have any name; no restore makes anything but a directory here.
            if stage is None or not _MARK.fullmatch(mark) or not _is_directory(self.parent / name):
                continue
            if not (why := _why_not_ours(self.parent / name)):
                ours.append((mark, stage))
            elif stage is not Stage.GONE:
                strangers.append(Stranger(mark=mark, stage=stage, path=self.parent / name, why=why))
        return ours, strangers

    def beside(self, mark: str, stage: Stage, *, kept: bool) -> Beside | None:
        """What is to be told of the directory of *mark*; ``None`` if it has just gone."""
        path = self.path(mark, stage)
        try:
            record = read_record(path)
        except SnapshotError:
            record = {}
        if stage is Stage.KEPT:
            record = dict(kept_record(record))
        try:
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            in_use = is_in_use(path)
        except OSError:
            return None
        return Beside(
            mark=mark,
            kept=kept,
            place=f"directory {path}",
            about=record.get("about", {}),
            kept_at=_moment(record.get("kept_at")) or (changed if kept else None),
            in_use=in_use,
        )


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """What another user's restore may have left on a shelf: it is never looked into, nor taken for nothing."""

    mark: str
    """Empty if it is the whole shelf, which can't be listed."""
    stage: Stage | None
    path: Path
    why: str
    """Why it isn't looked into, and what to do."""

    def beside(self) -> Beside:
        """What is to be told of it."""
        return Beside(mark=self.mark, kept=False, place=f"directory {self.path}", unseen=self.why)


class Marked:
    """One such directory, held open: ``path`` is its name as this process has last known it."""

    def __init__(self, shelf: Shelf, mark: str, stage: Stage, descriptor: int) -> None:
        self.shelf = shelf
        self.mark = mark
        self.stage = stage
        self._descriptor = descriptor

    @property
    def path(self) -> Path:
        return self.shelf.path(self.mark, self.stage)

    @property
    def is_still_there(self) -> bool:
        """Whether the name still leads to this very directory."""
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def require(self) -> None:
        """Raise ``SnapshotBusyError`` if somebody has settled this attempt."""
        if not self.is_still_there:
            raise SnapshotBusyError(
                f"{self.path} is not there any more: another process has ended this restore, because its own process "
                "showed no sign of life. It changes nothing any more; look at the run for what became of it."
            )

    def become(self, stage: Stage) -> None:
        """Give it its next name, durably. Raises ``SnapshotBusyError`` if somebody else has done that."""
        self.require()
        try:
            self.path.rename(self.shelf.path(self.mark, stage))
        except FileNotFoundError:
            self.require()
            raise
        self.stage = stage
        sync(self.shelf.parent)

    def read_record(self) -> dict[str, Any]:
        """What ``write_record`` wrote. Raises ``SnapshotArtifactError`` if that can't be read."""
        return read_record(self.path)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace the record, durably."""
        fresh = self.path / f"{_RECORD}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / _RECORD)
        self.sync()

    def sync(self) -> None:
        """Make the names in it durable."""
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """Remove it with all that is in it, if it is still there. Raises ``OSError``."""
        if self.is_still_there:
            if self.stage is not Stage.GONE:
                self.become(Stage.GONE)
            empty(self._descriptor)
            self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Marked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_record(directory: Path) -> dict[str, Any]:
    """The record in *directory*. Raises ``SnapshotArtifactError`` if it is missing or is not what we write: that says
    nothing of the snapshot which is being restored."""
    try:
        descriptor = os.open(directory / _RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no file")
            record = json.loads(file.read(_RECORD_AT_MOST))
        if not isinstance(record, dict) or not isinstance(record.get("about", {}), dict):
            raise ValueError("it is not a record of a restore")  # noqa: TRY004
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotArtifactError(
            f"The record in {directory} can't be read ({error}), so nothing is done with what is kept there. "
            "It may be a state that a restore replaced; look at it by hand."
        ) from error
    return record


def is_bare(directory: Path) -> bool:
    """Whether its attempt has ended before its first record was complete, and so before it built anything there."""
    try:
        return set(os.listdir(directory)) <= {f"{_RECORD}.new"}  # noqa: PTH208
    except OSError:
        return False


def new_record(about: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """A record of an attempt that begins."""
    return {"about": dict(about), "begun_at": datetime.now(UTC).isoformat(), "kept_at": None, **facts}


def kept_now(record: Mapping[str, Any]) -> dict[str, Any]:
    """*record*, of a state that is kept from now on; one that is kept already keeps its date."""
    return {**record, "kept_at": record.get("kept_at") or datetime.now(UTC).isoformat()}


def kept_record(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The kept state's own record, also if somebody who was to bring it back died after writing the next one."""
    former = record.get("brought_back")
    inner = former.get("record") if isinstance(former, dict) else None
    return inner if isinstance(inner, dict) and isinstance(inner.get("about", {}), dict) else record


def is_in_use(path: Path) -> bool:
    """Whether a living process has the lock of the directory. Raises ``OSError`` if it is gone."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        return not locked(descriptor)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def remove_directory(path: Path) -> None:
    """Remove a directory of this user with all that is in it; follows no link and enters no other file system."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        empty(descriptor)
        path.rmdir()
    finally:
        os.close(descriptor)


def sync(directory: Path) -> None:
    """Make the names in *directory* durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def taken(shelf: Shelf, mark: str, stage: Stage) -> Iterator[Marked | None]:
    """As ``Shelf.take``, and closed at the end."""
    marked = shelf.take(mark, stage)
    try:
        yield marked
    finally:
        if marked is not None:
            marked.close()


def _is_ours(path: Path) -> bool:
    """Whether it is a directory as this user makes it: nobody else can have put anything in."""
    try:
        return _is_private(os.lstat(path))
    except OSError:
        return False


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077 == 0


def _is_directory(path: Path) -> bool:
    """Whether it is one, as far as that can be seen."""
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return True


def _why_not_ours(path: Path) -> str:
    """Why this user takes nothing from *path*, and what to do; empty if he does, and if nothing is there."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return (
            f"It can't be seen whether a restore has left {path}: {error.strerror}. Settle it as the user whose "
            "restore it was."
        )
    if _is_private(found):
        return ""
    if not stat.S_ISDIR(found.st_mode):
        way_out = "It is no directory, so no restore has made it; remove it."
    elif found.st_uid == os.geteuid():
        way_out = "If you trust what is in it, make it private again (chmod 0700)."
    else:
        way_out = (
            "Only its owner settles, brings back or removes it: do this as the user whose restore it was. If no "
            "restore has made it, remove it."
        )
    return (
        f"{path} is not as this user (number {os.geteuid()}) makes it: it belongs to user number {found.st_uid}, and "
        f"its mode is {stat.filemode(found.st_mode)}. {way_out}"
    )


def _require_private(path: Path) -> None:
    if not _is_ours(path):
        found = path.lstat()
        raise SnapshotPreflightError(
            f"{path}, which user number {os.geteuid()} made with the mode 0700, belongs to user number {found.st_uid} "
            f"and is {stat.filemode(found.st_mode)}: the file system there forces owners or modes, so nothing can be "
            "kept there that only its owner may change. Mount it with that user's uid= and dir_mode=0700 or dmask=077; "
            "where a server takes root for nobody, let the worker run as an ordinary user."
        )


def _moment(text: object) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError):
        moment = datetime.fromisoformat(str(text))
        return moment if moment.tzinfo else None
    return None
