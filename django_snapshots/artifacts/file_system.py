"""What a file system can do that Python has no function for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_MOUNTS = Path("/proc/self/mountinfo")


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (renameat2(2), Linux). Raises ``OSError``, with ENOSYS where there is no such call."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def move(origin: Path, destination: Path) -> None:
    """Rename; a directory that its owner may not write to is made writable for that moment (its ``..`` changes)."""
    try:
        origin.rename(destination)
    except PermissionError:
        mode = origin.lstat().st_mode
        if not stat.S_ISDIR(mode) or mode & stat.S_IWUSR:
            raise
        origin.chmod(stat.S_IMODE(mode) | stat.S_IWUSR)
        try:
            origin.rename(destination)
        except OSError:
            origin.chmod(stat.S_IMODE(mode))
            raise
        destination.chmod(stat.S_IMODE(mode))


def move_without_replacing(origin: Path, destination: Path) -> None:
    """As ``move``, but ``FileExistsError`` if the name is taken, also by somebody who takes it at this moment."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        names = os.fsencode(origin), os.fsencode(destination)
        if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number in (errno.EEXIST, errno.ENOENT):
            raise OSError(number, os.strerror(number), str(origin), None, str(destination))
    # Without such a call, or without the right that ``move`` gets itself, there is a moment between these two.
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    move(origin, destination)


def mounts_at_or_below(root: Path) -> set[Path]:
    """The mount points that are *root* or below it; without Linux's table of mounts only *root* itself can be told."""
    if not _MOUNTS.exists():
        return {root} if root.is_mount() else set()
    points = set()
    for line in _MOUNTS.read_bytes().splitlines():
        name = line.split(b" ")[4]
        # Blanks and backslashes are written as octal escapes (proc(5)).
        for escape, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
            name = name.replace(escape, plain)
        points.add(Path(os.fsdecode(name)))
    return {point for point in points if point == root or root in point.parents}


def remove_tree(directory: Path) -> None:
    """Remove *directory* and all that is in it, whatever modes its directories have; a missing one is fine."""
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(directory)
        except PermissionError:
            _open_up(directory)
            shutil.rmtree(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in *directory* durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(directory: Path) -> None:
    """Make all that was written to the file system of *directory* durable (syncfs(2), else sync(2)).

    One call for the whole tree: an fsync for each of many small files costs many times more. Raises ``OSError``.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        os.sync()
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if call(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)


def _open_up(directory: Path) -> None:
    directory.chmod(0o700)
    for parent, names, _ in os.walk(directory):
        for name in names:
            below = Path(parent, name)
            if not below.is_symlink():
                below.chmod(0o700)
