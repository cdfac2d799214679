"""Adds to a tree what another one has besides, without a copy where the file system can give a file two names."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from django_snapshots.artifacts.file_system import move_without_replacing
from django_snapshots.artifacts.media_walk import is_own_name


def add_missing(origin: bytes, destination: bytes, room: bytes, *, refused: list[bytes] | None = None) -> None:
    """Put what is below *origin* and not below *destination* there as well; nothing that is there is changed.

    A name that is a file here and a directory there stays what it is in *destination*. What vanishes while this goes
    on is left out. Everything appears whole, and replaces nothing: what has to be made first is made in *room*, a
    private directory on the same file system. May be done again, also after a death. What this user has no right to
    read or to put there is left out if there is a list for its name, *refused*. Raises ``OSError``.
    """
    with _unless_refused(origin, refused), _writable(destination):
        for name, is_directory in _entries(origin):
            theirs, ours = os.path.join(origin, name), os.path.join(destination, name)  # noqa: PTH118 - bytes
            with _unless_refused(theirs, refused), contextlib.suppress(FileNotFoundError):
                if is_directory:
                    _directory(theirs, ours, room, refused)
                elif not os.path.lexists(ours):
                    _file(theirs, ours, room)


def _entries(directory: bytes) -> list[tuple[bytes, bool]]:
    try:
        with os.scandir(directory) as entries:
            return sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries if not is_own_name(e.name))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _unless_refused(path: bytes, refused: list[bytes] | None) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        if refused is None:
            raise
        refused.append(path)


def _directory(theirs: bytes, ours: bytes, room: bytes, refused: list[bytes] | None) -> None:
    made = False
    if not os.path.lexists(ours):
        with tempfile.TemporaryDirectory(dir=room) as apart:
            fresh = os.path.join(apart, b"fresh")  # noqa: PTH118 - bytes
            os.mkdir(fresh, 0o700)  # noqa: PTH102 - bytes
            _own(theirs, fresh)
            shutil.copystat(theirs, fresh)
            made = _appears(fresh, ours)
    if stat.S_ISDIR(os.lstat(ours).st_mode):
        add_missing(theirs, ours, room, refused=refused)
        if made:
            shutil.copystat(theirs, ours)


def _file(theirs: bytes, ours: bytes, room: bytes) -> None:
    try:
        os.link(theirs, ours, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except FileExistsError:  # somebody has just put one there
        return
    except OSError:  # no right to (a file of somebody else), or no hard links here
        with tempfile.TemporaryDirectory(dir=room) as apart:
            fresh = os.path.join(apart, b"fresh")  # noqa: PTH118 - bytes
            shutil.copy2(theirs, fresh, follow_symlinks=False)
            _own(theirs, fresh)
            _appears(fresh, ours)


def _appears(fresh: bytes, ours: bytes) -> bool:
    try:
        move_without_replacing(Path(os.fsdecode(fresh)), Path(os.fsdecode(ours)))
    except FileExistsError:
        return False
    return True


def _own(theirs: bytes, ours: bytes) -> None:
    status = os.lstat(theirs)
    with contextlib.suppress(PermissionError):
        os.chown(ours, status.st_uid, status.st_gid, follow_symlinks=False)


@contextlib.contextmanager
def _writable(directory: bytes) -> Iterator[None]:
    """A directory that its owner may not write to is made writable for the time."""
    mode = stat.S_IMODE(os.stat(directory).st_mode)  # noqa: PTH116 - bytes
    if mode & stat.S_IWUSR:
        yield
        return
    Path(os.fsdecode(directory)).chmod(mode | stat.S_IWUSR)
    try:
        yield
    finally:
        Path(os.fsdecode(directory)).chmod(mode)
