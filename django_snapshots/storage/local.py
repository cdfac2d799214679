"""Snapshots in a directory of this machine, or of one that is mounted here."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStorageError,
)
from django_snapshots.storage import _tree
from django_snapshots.storage._system import rename_exclusively
from django_snapshots.storage._unfinished import Unfinished, retrying
from django_snapshots.storage.mirror import mirror
from django_snapshots.storage.paths import check_path, check_prefix
from django_snapshots.transfer import CHUNK_SIZE

__all__ = ["CHUNK_SIZE", "LocalFileSystemBackend"]


class LocalFileSystemBackend:
    """The advanced tier in a directory. Built without any look at the disk; the first write makes the directory.

    A returned write is on the disk: file, directory and new parents are fsynced, and an fsync or close that fails
    fails the write. Files and directories are private unless the modes say otherwise; the umask has no say. Links
    below *location* are never followed, *location* itself may be one. A directory goes with its last object.
    """

    move_is_copy = False

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        file_mode: int = 0o600,
        directory_mode: int = 0o700,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        if not os.fspath(location):
            raise SnapshotConfigurationError("LocalFileSystemBackend needs a location: the directory for snapshots.")
        if chunk_size < 1:
            raise SnapshotConfigurationError(f"LocalFileSystemBackend can't read {chunk_size} bytes at a time.")
        self.location = Path(location).absolute()
        self.file_mode = file_mode
        self.directory_mode = directory_mode
        self.chunk_size = chunk_size

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.label}>"

    @property
    def label(self) -> str:
        """What and where this storage is, for people."""
        return f"directory {self.location}"

    def free_space(self) -> int | None:
        """Bytes that are free for this user on the file system; ``None`` where that can't be told."""
        try:
            return shutil.disk_usage(self.location).free
        except OSError:
            return None

    def read(self, path: str) -> IO[bytes]:
        """Open the object as an ordinary file. See :class:`~django_snapshots.storage.SnapshotStorage`."""
        return self._open(path, buffering=-1)

    def write(self, path: str, content: IO[bytes]) -> None:
        """Store what is left of *content*, with every promise of ``stream_write``."""
        self.stream_write(path, iter(lambda: content.read(self.chunk_size), b""))

    def list(self, prefix: str) -> builtins.list[str]:
        """Immediate children, sorted. A link is listed, and refused when it is asked for."""
        directory = check_prefix(prefix)
        try:
            with self._translated("list", prefix), _tree.opened(self.location, directory) as descriptor:
                return _tree.names(descriptor)
        except FileNotFoundError:
            return []

    def delete(self, path: str) -> None:
        """Remove the object, and the directories that are empty without it. Gone means gone, also after a power cut."""
        directory, _, name = check_path(path).rpartition("/")
        try:
            with self._translated("delete", path), _tree.opened(self.location, directory) as descriptor:
                if not self._is_object(descriptor, name, path):
                    return
                os.unlink(name, dir_fd=descriptor)
                os.fsync(descriptor)
        except FileNotFoundError:
            return
        _tree.prune(self.location, directory)

    def exists(self, path: str) -> bool:
        """Whether an object is there. A link, or a directory that can't be looked into, is an error."""
        directory, _, name = check_path(path).rpartition("/")
        try:
            with self._translated("look for", path), _tree.opened(self.location, directory) as descriptor:
                return self._is_object(descriptor, name, path)
        except FileNotFoundError:
            return False

    def stream_read(self, path: str) -> Iterator[bytes]:
        """The object in chunks of ``chunk_size``; opened at the first one."""
        with self._open(path, buffering=0) as file:
            while True:
                with self._translated("read", path):
                    chunk = file.read(self.chunk_size)
                if not chunk:
                    return
                yield chunk

    def stream_write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Store all *chunks*; until the last is on the disk, *path* is what it was. Errors of *chunks* come out as they
        are, those of the disk as ``SnapshotStorageError``."""
        check_path(path)
        try:
            with self._translated("write", path):
                part = self._unfinished(path)
        except SnapshotStorageError:
            self._prune_parent(path)
            raise
        try:
            for chunk in chunks:
                with self._translated("write", path):
                    part.write(chunk)
            with self._translated("write", path):
                part.publish()
        finally:
            part.discard()

    def atomic_move(self, src: str, dst: str) -> None:
        """Rename in one step. Raises ``SnapshotExistsError`` if *dst* exists, whoever was first, and
        ``SnapshotNotFoundError`` if *src* doesn't."""
        check_path(src)
        check_path(dst)
        try:
            with self._translated("move", src, f" to {dst!r}"):
                retrying(lambda: self._move(src, dst))
        except SnapshotStorageError:
            self._prune_parent(dst)
            raise
        self._prune_parent(src)

    def recursive_list(self, prefix: str) -> builtins.list[str]:
        """Every object at or below *prefix*, sorted, from the root; a link is listed as :meth:`list` does."""
        directory = check_prefix(prefix)
        with self._translated("list", prefix):
            found = set(_tree.walk(self.location, directory))
        if directory and self.exists(directory):
            found.add(directory)
        return sorted(found)

    def sync(self, src_prefix: str, dst_prefix: str, *, allow_empty: bool = False) -> None:
        """Mirror one prefix to another of this storage; an empty source needs *allow_empty*. There are no remotes."""
        mirror(self, src_prefix, dst_prefix, allow_empty=allow_empty, label=self.label)

    def _unfinished(self, path: str) -> Unfinished:
        return Unfinished(
            self.location,
            path,
            file_mode=self.file_mode,
            directory_mode=self.directory_mode,
            buffer_size=self.chunk_size,
        )

    def _open(self, path: str, buffering: int) -> IO[bytes]:
        directory, _, name = check_path(path).rpartition("/")
        with self._translated("read", path), _tree.opened(self.location, directory) as descriptor:
            if not self._is_object(descriptor, name, path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            # O_NONBLOCK: what became a named pipe a moment ago must not hold us up.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=descriptor)
        return open(str(self.location / path), "rb", buffering=buffering, opener=lambda *_: file)

    def _move(self, src: str, dst: str) -> None:
        src_directory, _, src_name = src.rpartition("/")
        dst_directory, _, dst_name = dst.rpartition("/")
        try:
            with _tree.opened(self.location, src_directory) as here:
                self._ensure_object(here, src_name, src)
                with _tree.made(self.location, dst_directory, self.directory_mode, sync=True) as there:
                    _tree.entry_mode(there, dst_name, dst)
                    rename_exclusively(here, src_name, there, dst_name)
                    os.fsync(there)
                os.fsync(here)
        except SnapshotError:
            raise
        except FileExistsError as error:
            raise SnapshotExistsError(f"{dst!r} exists already in {self.label}; {src!r} was not moved.") from error

    def _ensure_object(self, descriptor: int, name: str, path: str) -> None:
        if not self._is_object(descriptor, name, path):
            raise self._missing(path)

    def _is_object(self, descriptor: int, name: str, path: str) -> bool:
        mode = _tree.entry_mode(descriptor, name, path)
        if mode is None or stat.S_ISDIR(mode):
            return False
        if not stat.S_ISREG(mode):
            raise SnapshotStorageError(f"{path!r} in {self.label} is a device, pipe or socket, not a file.")
        return True

    def _prune_parent(self, path: str) -> None:
        _tree.prune(self.location, path.rpartition("/")[0])

    def _missing(self, path: str) -> SnapshotNotFoundError:
        return SnapshotNotFoundError(f"There is no object {path!r} in {self.label}.")

    @contextmanager
    def _translated(self, doing: str, path: str, rest: str = "") -> Iterator[None]:
        """Name the file and the cause in every error of the operating system."""
        try:
            yield
        except SnapshotError:
            raise
        except FileNotFoundError as error:
            if doing == "write":
                raise self._failed(doing, path, rest, error) from error
            raise self._missing(path) from error
        except OSError as error:
            raise self._failed(doing, path, rest, error) from error

    def _failed(self, doing: str, path: str, rest: str, error: OSError) -> SnapshotStorageError:
        reason = error.strerror or str(error)
        return SnapshotStorageError(f"Could not {doing} {path!r}{rest} in {self.label}: {reason}.")
