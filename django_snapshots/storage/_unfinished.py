"""An object that is being written and has no name yet.

Where the file system can (``O_TMPFILE``), the file has no name at all until it is whole, so that a killed process
leaves nothing behind. Elsewhere it has a reserved name in the same directory, which no listing shows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from django_snapshots.exceptions import SnapshotError, SnapshotPathError
from django_snapshots.storage import _tree
from django_snapshots.storage._system import start_writeback
from django_snapshots.storage.paths import RESERVED

_Result = TypeVar("_Result")
_ATTEMPTS = 50
_WRITEBACK = 8 * 1024 * 1024
"""Bytes between two calls that start writing to the disk. Without them, the final fsync of 1 GB takes as long as a
sixth of the whole write, with nothing else going on; a thread that calls fdatasync gains less."""
_FLAGS = os.O_WRONLY | os.O_CLOEXEC
_HOME = "/proc/self/fd"


class Unfinished:
    """One object between its first byte and its name. ``publish`` or not, ``discard`` comes last and never raises."""

    def __init__(self, root: Path, path: str, *, file_mode: int, directory_mode: int, buffer_size: int) -> None:
        self._root = root
        self._path = path
        self._directory, _, self._name = path.rpartition("/")
        self._directory_mode = directory_mode
        self._temporary: str | None = None
        self._keeper: int | None = None
        self._published = False
        self._written = self._started = 0
        descriptor = retrying(self._create)
        self._file = open(descriptor, "wb", buffering=buffer_size)  # noqa: PTH123, SIM115 - a descriptor; discard closes it
        os.fchmod(descriptor, file_mode)

    def write(self, chunk: bytes) -> None:
        """Add *chunk*; the kernel begins to write it out soon, so that the end does not have to wait for all of it."""
        self._file.write(chunk)
        self._written += len(chunk)
        if self._written - self._started >= _WRITEBACK:
            start_writeback(self._file.fileno(), self._started, self._written - self._started)
            self._started = self._written

    def publish(self) -> None:
        """Give the object its name, replacing what has it. All is on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._temporary is None:
            # Holds the nameless file, so that the close and its error come before the name.
            self._keeper = os.open(f"{_HOME}/{self._file.fileno()}", os.O_PATH | os.O_CLOEXEC)
        self._file.close()
        retrying(self._place)
        self._published = True

    def discard(self) -> None:
        """Close, and remove what an unpublished object left."""
        with suppress(OSError):
            self._file.close()
        if self._keeper is not None:
            os.close(self._keeper)
            self._keeper = None
        if self._temporary is not None:
            with suppress(OSError, SnapshotPathError), _tree.opened(self._root, self._directory) as directory:
                os.unlink(self._temporary, dir_fd=directory)
            self._temporary = None
        if not self._published:
            _tree.prune(self._root, self._directory)

    def _create(self) -> int:
        with _tree.made(self._root, self._directory, self._directory_mode, sync=False) as directory:
            _refuse_directory(directory, self._name, self._path)
            nameless = _open_nameless(directory)
            if nameless is not None:
                return nameless
            self._temporary = RESERVED + token_hex(8)
            return os.open(self._temporary, _FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)

    def _place(self) -> None:
        with _tree.made(self._root, self._directory, self._directory_mode, sync=True) as directory:
            replaces = _refuse_directory(directory, self._name, self._path)
            self._link_and_rename(directory)
            try:
                os.fsync(directory)
            except OSError:
                if not replaces:
                    os.unlink(self._name, dir_fd=directory)
                raise

    def _link_and_rename(self, directory: int) -> None:
        if self._temporary is None:
            try:
                self._link(self._name, directory)
                return
            except FileExistsError:
                # A link replaces nothing; a rename does, and it needs a name to start from.
                temporary = RESERVED + token_hex(8)
                self._link(temporary, directory)
                self._temporary = temporary
        os.rename(self._temporary, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        self._temporary = None

    def _link(self, name: str, directory: int) -> None:
        os.link(f"{_HOME}/{self._keeper}", name, dst_dir_fd=directory, follow_symlinks=True)


def retrying(action: Callable[[], _Result]) -> _Result:
    """Do *action* again if a directory that it just made was gone: a delete next to it removes empty ones."""
    for _ in range(_ATTEMPTS):
        try:
            return action()
        except SnapshotError:
            raise
        except FileNotFoundError:
            continue
    return action()


def _refuse_directory(directory: int, name: str, path: str) -> bool:
    """Whether an object has this name already; ``IsADirectoryError`` if a directory has it."""
    mode = _tree.entry_mode(directory, name, path)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return mode is not None


def _open_nameless(directory: int) -> int | None:
    """A new file without a name in *directory*; None where the file system, or a missing /proc, does not allow it."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not Path(_HOME).is_dir():
        return None
    try:
        return os.open(".", _FLAGS | flag, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS):
            return None
        if os.fstat(directory).st_nlink == 0:
            # Removed by a delete a moment ago; ext4 says EPERM then.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise
