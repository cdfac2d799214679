"""Private temporary directories, which don't outlive their owner for long.

A directory is locked (flock(2)) by the process that made it for as long as it is used. The kernel drops the lock when
that process ends, whatever ends it; so a directory whose lock can be had is nobody's, and no process number has to be
believed. The name says on which host and in which boot it was made, because a lock on a file system that several
hosts share may be known to one of them only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("django_snapshots")

_PREFIX = "django-snapshots-"
_NAME = re.compile(rf"{_PREFIX}(?P<host>[0-9a-f]{{8}})-(?P<boot>[0-9a-f]{{8}})-[a-z0-9_]+")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def private_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory that only this user can enter (0700), below *parent* or the system's own, removed at the end.

    What killed owners have left in *parent* is removed first, which gives back its room. Started programs don't inherit
    the lock. Where the file system has no locks the directory is made all the same, and is never taken for abandoned.
    """
    remove_abandoned(parent)
    path, descriptor = _make(parent)
    try:
        yield path
    finally:
        try:
            empty(descriptor)
            path.rmdir()
        finally:
            os.close(descriptor)


def remove_abandoned(parent: Path | None = None) -> list[Path]:
    """Remove the private directories in *parent* (or the system's own) whose owner is dead; return which they were.

    Only those of this user and this host whose lock can be had: never one that is in use, in whatever process or
    thread, nor another user's, nor a link. No link is followed and no other file system entered. What can't be removed
    is logged and left. Any number of processes may do this at once.
    """
    where = Path(parent or tempfile.gettempdir())
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        logger.warning("Abandoned temporary directories in %s could not be looked for: %s.", where, error)
        return []
    try:
        names = [name for name in sorted(os.listdir(descriptor)) if _is_of_here(name)]  # noqa: PTH208 - a descriptor
        return [where / name for name in names if _remove_if_abandoned(where, name, descriptor)]
    finally:
        os.close(descriptor)


def _make(parent: Path | None) -> tuple[Path, int]:
    """Make a directory and lock it."""
    host, boot = here()
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{host}-{boot}-", dir=parent))
        try:
            descriptor = os.open(path, _DIRECTORY)
        except FileNotFoundError:
            # Somebody removed what was not locked yet.
            continue
        try:
            # Somebody who holds the lock is about to remove it.
            if locked(descriptor) and _is_still(path, descriptor):
                return path, descriptor
        except OSError:
            path.rmdir()
            return _make_without_lock(parent, descriptor)
        os.close(descriptor)


def _make_without_lock(parent: Path | None, descriptor: int) -> tuple[Path, int]:
    """Under a name that ``remove_abandoned`` does not know."""
    os.close(descriptor)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    return path, os.open(path, _DIRECTORY)


def _remove_if_abandoned(where: Path, name: str, parent: int) -> bool:
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError:  # gone, or no directory, or one of somebody else
        return False
    try:
        if not (_is_ours(descriptor, parent) and locked(descriptor) and _is_still(name, descriptor, parent)):
            return False
        empty(descriptor)
        os.rmdir(name, dir_fd=parent)
        return True
    except (OSError, RecursionError) as error:
        logger.warning("The abandoned temporary directory %s could not be removed: %s.", where / name, error)
        return False
    finally:
        os.close(descriptor)


def _is_ours(descriptor: int, parent: int) -> bool:
    """Whether it is as this user makes it, and not something mounted there."""
    found = os.fstat(descriptor)
    private = found.st_uid == os.geteuid() and found.st_mode & 0o777 == stat.S_IRWXU
    return private and found.st_dev == os.fstat(parent).st_dev


def locked(descriptor: int) -> bool:
    """Take the lock, which ends with the last copy of *descriptor*; ``False`` if somebody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path | str, descriptor: int, parent: int | None = None) -> bool:
    """Whether *path* still is what was opened: between the opening and the lock somebody else may have removed it."""
    try:
        found = os.stat(path, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def empty(directory: int) -> None:
    """Remove all that is in an open directory, whatever modes its directories have."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if is_directory:
            _empty_below(name, directory)
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


def _empty_below(name: str, parent: int) -> None:
    with contextlib.suppress(PermissionError):
        os.chmod(name, stat.S_IRWXU, dir_fd=parent)
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_dev != os.fstat(parent).st_dev:
            raise OSError(errno.EXDEV, "Another file system is mounted there", name)
        empty(descriptor)
    finally:
        os.close(descriptor)


def _is_of_here(name: str) -> bool:
    """Whether its lock can be trusted: made in this boot of the kernel, or in an earlier one of this host."""
    found = _NAME.fullmatch(name)
    host, boot = here()
    return found is not None and (found["host"] == host or found["boot"] == boot)


@functools.cache
def here() -> tuple[str, str]:
    """Short digests of this host's name and of this boot; where a boot has no name, the host's stands for it."""
    host = os.uname().nodename
    try:
        boot = _BOOT_ID.read_text()
    except OSError:
        boot = host
    return _digest(host), _digest(boot)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
