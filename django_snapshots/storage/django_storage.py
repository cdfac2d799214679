"""Snapshots in whatever Django's storages reach: an entry of ``STORAGES``, or an instance."""

from __future__ import annotations

import builtins
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, cast

from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation
from django.core.files import File
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage, storages

from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotPathError,
    SnapshotStorageError,
)
from django_snapshots.storage.paths import check_path, check_prefix, is_name, join
from django_snapshots.transfer import CHUNK_SIZE

_NOT_AN_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
"""What storages raise where no object or no directory is; the last one is InMemoryStorage's for a file as directory."""


class DjangoStorageBackend:
    """The basic tier over any Django storage; promises no more than that storage does.

    It streams by chunks. What can't seek goes through a private temporary file first, unless the storage is one that
    only reads forwards: of Django's own two that is known, most others seek to find a size or to try again. *spool*
    True or False decides it for a storage that you know better; *spool_directory* is where, the system's by default.

    Objects are not replaced unless the storage itself overwrites: a name that is taken raises ``SnapshotExistsError``.
    """

    move_is_copy = True

    def __init__(
        self, storage: Storage | str, *, spool: bool | None = None, spool_directory: str | None = None
    ) -> None:
        self._storage = storage
        self._spool = spool
        self._spool_directory = spool_directory

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.label}>"

    @property
    def storage(self) -> Storage:
        """The wrapped storage; an alias is looked up at every use, so that settings may change in between."""
        if not isinstance(self._storage, str):
            return self._storage
        try:
            return storages[self._storage]
        except ImproperlyConfigured as error:
            raise SnapshotConfigurationError(f"STORAGES[{self._storage!r}] can't be used: {error}") from error

    @property
    def label(self) -> str:
        """What and where this storage is, for people; an alias is not looked up for it."""
        if isinstance(self._storage, str):
            return f"Django storage {self._storage!r}"
        where = f" at {self._storage.location}" if isinstance(self._storage, FileSystemStorage) else ""
        return f"Django storage {type(self._storage).__name__}{where}"

    def read(self, path: str) -> IO[bytes]:
        """Open the object with the storage's own file class."""
        check_path(path)
        with self._translated("read", path):
            try:
                return cast(IO[bytes], self.storage.open(path, "rb"))
            except _NOT_AN_OBJECT as error:
                raise SnapshotNotFoundError(f"There is no object {path!r} in {self.label}.") from error

    def write(self, path: str, content: IO[bytes]) -> None:
        """Store what is left of *content*. A name that is taken, or that the storage changes, is refused."""
        check_path(path)
        with self._translated("write", path), ExitStack() as stack:
            before, start = self.exists(path), _start(content)
            self._ensure_same(path, self.storage.get_available_name(path))
            file = self._from_here(path, content, stack)
            try:
                saved = self.storage.save(path, file)
            except BaseException:
                if not before and self._is_half(path, content, start):
                    # Half an object, under a name that nobody had.
                    self._discard(path)
                raise
            if saved != path:
                self._discard(saved)
            self._ensure_same(path, saved)

    def list(self, prefix: str) -> builtins.list[str]:
        """Immediate children, sorted, as far as they are names that can be asked for."""
        directories, files = self._children(check_prefix(prefix))
        return sorted({*directories, *files})

    def delete(self, path: str) -> None:
        """Remove the object; a directory of that name, which some storages would remove whole, stays."""
        if self.exists(path):
            with self._translated("delete", path), suppress(FileNotFoundError):
                self.storage.delete(path)

    def exists(self, path: str) -> bool:
        """Whether an object is there. Asks the directory, because of Django's storages some say yes to a directory,
        and the one for files says no where it may not look."""
        directory, _, name = check_path(path).rpartition("/")
        return name in self._children(directory)[1]

    def recursive_list(self, prefix: str) -> builtins.list[str]:
        """Every object at or below *prefix*, sorted: an extra of this backend, with one listing per directory."""
        root = check_prefix(prefix)
        found = {root} if root and self.exists(root) else set()
        pending = [root]
        while pending:
            directory = pending.pop()
            directories, files = self._children(directory)
            pending += [join(directory, name) for name in directories]
            found.update(join(directory, name) for name in files)
        return sorted(found)

    def _children(self, directory: str) -> tuple[builtins.list[str], builtins.list[str]]:
        with self._translated("list", directory):
            try:
                directories, files = self.storage.listdir(directory)
            except _NOT_AN_OBJECT:
                return [], []
        # Some storages of objects give directories with a slash, and the directory itself as an empty name.
        return _names(directories), _names(files)

    def _from_here(self, path: str, content: IO[bytes], stack: ExitStack) -> _Forwards:
        """What is left of *content*, as a file that the storage can use; a spool ends with *stack*."""
        if _at_start(content) or not self._must_seek():
            return _Forwards(content, path)
        try:
            spool = stack.enter_context(tempfile.TemporaryFile(dir=self._spool_directory))  # noqa: SIM115
            shutil.copyfileobj(content, spool, CHUNK_SIZE)
        except OSError as error:
            where = self._spool_directory or tempfile.gettempdir()
            raise SnapshotStorageError(f"Could not spool to a temporary file in {where}: {error}.") from error
        spool.seek(0)
        return _Forwards(spool, path)

    def _must_seek(self) -> bool:
        if self._spool is not None:
            return self._spool
        return not isinstance(self.storage, (FileSystemStorage, InMemoryStorage))

    def _ensure_same(self, path: str, name: str) -> None:
        if name != path:
            raise SnapshotExistsError(
                f"{self.label} would store {path!r} as {name!r}: the name is taken, or the storage changes names. "
                "Delete the object first, or choose another name."
            )

    def _is_half(self, path: str, content: IO[bytes], start: int | None) -> bool:
        """Whether what lies there is the beginning of *content*, and no more: somebody else may have written the object
        meanwhile. What can't be read again is a stream, and those go to names of their own."""
        if start is None:
            return True
        with suppress(Exception):
            content.seek(start)
            with self.storage.open(path, "rb") as stored:
                while chunk := stored.read(CHUNK_SIZE):
                    if content.read(len(chunk)) != chunk:
                        return False
            return bool(content.read(1))
        return False

    def _discard(self, path: str) -> None:
        with suppress(Exception):
            self.storage.delete(path)

    @contextmanager
    def _translated(self, doing: str, path: str) -> Iterator[None]:
        try:
            yield
        except SnapshotError:
            raise
        except SuspiciousFileOperation as error:
            raise SnapshotPathError(f"{self.label} refused the path {path!r}: {error}") from error
        except Exception as error:  # a storage's library has a tree of errors of its own
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SnapshotStorageError(f"Could not {doing} {path!r} in {self.label}: {reason}.") from error


class _Forwards(File):  # type: ignore[type-arg]
    """Chunks from where the file stands; Django's own ``chunks`` begins with a seek."""

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        while chunk := self.read(chunk_size or CHUNK_SIZE):
            yield chunk


def _at_start(content: IO[bytes]) -> bool:
    try:
        return content.seekable() and content.tell() == 0
    except (AttributeError, OSError):
        return False


def _start(content: IO[bytes]) -> int | None:
    """Where *content* can be read from again; ``None`` if it can't."""
    try:
        return content.tell() if content.seekable() else None
    except (AttributeError, OSError):
        return None


def _names(found: builtins.list[str]) -> builtins.list[str]:
    return [name for name in (entry.rstrip("/") for entry in found) if is_name(name)]
