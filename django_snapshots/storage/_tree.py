"""Directories below a root, reached part by part and never through a link.

Every step opens one directory relative to the one before it, with ``O_NOFOLLOW``. So a link below the root can't lead
out of it, not even one that is put there while we look; the root itself may be a link. All errors are ``OSError``, and
``SnapshotPathError`` for a link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django_snapshots.exceptions import SnapshotPathError
from django_snapshots.storage.paths import is_name, join

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def opened(root: Path, directory: str) -> Iterator[int]:
    """A descriptor of *directory* below *root*; ``FileNotFoundError`` if it is missing or not a directory."""
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in _parts(directory):
            descriptor = _replace(descriptor, _enter(descriptor, part))
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def made(root: Path, directory: str, mode: int, *, sync: bool) -> Iterator[int]:
    """The same, but what is missing is made with *mode*.

    With *sync*, the whole way from the root survives a power cut when this yields, whoever made it: the one next to us
    who made a directory a moment ago may not have come to its fsync yet.
    """
    _make_root(root, mode)
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in _parts(directory):
            new = _make(descriptor, part, mode)
            try:
                if sync:
                    os.fsync(descriptor)
            except OSError:
                os.close(new)
                raise
            descriptor = _replace(descriptor, new)
        yield descriptor
    finally:
        os.close(descriptor)


def prune(root: Path, directory: str) -> None:
    """Remove *directory* and its parents below *root* as far as they are empty; somebody's new object stops it."""
    while directory:
        parent, _, name = directory.rpartition("/")
        try:
            with opened(root, parent) as descriptor:
                os.rmdir(name, dir_fd=descriptor)
        except FileNotFoundError:
            pass
        except (OSError, SnapshotPathError):
            return
        directory = parent


def entry_mode(descriptor: int, name: str, path: str) -> int | None:
    """The ``st_mode`` of an entry, None if there is none; refuses a link, *path* is its name for the message."""
    try:
        mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        raise _link(path)
    return mode


def names(descriptor: int) -> list[str]:
    """The entries of a directory that could be asked for, sorted."""
    return sorted(name for name in os.listdir(descriptor) if is_name(name))


def walk(root: Path, prefix: str) -> Iterator[str]:
    """Every entry below *prefix* that is not a directory, in no order; a directory that vanishes is empty."""
    pending = [prefix]
    while pending:
        directory = pending.pop()
        with suppress(FileNotFoundError), opened(root, directory) as descriptor:
            for name in names(descriptor):
                mode = _mode(descriptor, name)
                if mode is None:
                    continue
                if stat.S_ISDIR(mode):
                    pending.append(join(directory, name))
                else:
                    yield join(directory, name)


def _mode(descriptor: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _parts(directory: str) -> list[str]:
    return directory.split("/") if directory else []


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _enter(descriptor: int, part: str) -> int:
    try:
        return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        entry_mode(descriptor, part, part)
        # An object has nothing below it.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), part) from error


def _make(descriptor: int, part: str, mode: int) -> int:
    try:
        os.mkdir(part, 0o700, dir_fd=descriptor)
    except FileExistsError:
        return _enter_existing(descriptor, part)
    new = _enter_existing(descriptor, part)
    # Not by mkdir, which takes the umask off.
    os.fchmod(new, mode)
    return new


def _enter_existing(descriptor: int, part: str) -> int:
    try:
        return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
    except NotADirectoryError:
        entry_mode(descriptor, part, part)
        raise


def _make_root(root: Path, mode: int) -> None:
    missing = []
    directory = root
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir(0o700)
            directory.chmod(mode)
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: str) -> SnapshotPathError:
    return SnapshotPathError(f"{path!r} is a symbolic link; the storage follows none, because it could lead out of it.")
