"""Adds to a tree what another one has besides, without a copy where the file system can give a file two names.

A merge does it twice. The first pass (``merge``) adds to the tree that is being built, and writes down what. The second
one (``add_late``), when that is in place, adds what has come meanwhile, and puts a newer version of a file in the place
of the one that the first pass has added. It knows it by that list: a file whose facts are no longer those of then was
changed by somebody who found it in place, and stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from django_snapshots.artifacts.file_system import move_without_replacing
from django_snapshots.artifacts.media_walk import is_own_name
from django_snapshots.transfer import CHUNK_SIZE

MERGED = "merged"
"""The list, in the private directory: the facts of what was added and of what it was made from, and its path."""


def merge(origin: bytes, destination: bytes, room: bytes) -> None:
    """Put what is below *origin* and not below *destination* there as well; nothing that is there is changed.

    A name that is a file here and a directory there stays what it is in *destination*. What vanishes while this goes
    on is left out. Everything appears whole, and replaces nothing: what has to be made first is made in *room*, a
    private directory on the same file system, which gets the list. Raises ``OSError``.
    """
    with Path(os.fsdecode(room), MERGED).open("wb") as listed:
        _Pass(destination, room, listed=listed).add(origin, destination)


def add_late(origin: bytes, destination: bytes, room: bytes, *, refused: list[bytes]) -> None:
    """As ``merge``, after it, and with newer versions. May be done again, also after a death. What this user has no
    right to read or to put there is left out, and named in *refused*."""
    with contextlib.closing(_lines(Path(os.fsdecode(room), MERGED))) as lines:
        _Pass(destination, room, lines=lines, refused=refused).add(origin, destination)


def _lines(listed: Path) -> Generator[bytes]:
    rest = b""
    with contextlib.suppress(FileNotFoundError), listed.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            *lines, rest = (rest + chunk).split(b"\0")
            yield from lines


class _Pass:
    """One walk through a tree: always in the same order, in which the list is written and read."""

    def __init__(
        self,
        root: bytes,
        room: bytes,
        *,
        listed: BinaryIO | None = None,
        lines: Iterable[bytes] = (),
        refused: list[bytes] | None = None,
    ) -> None:
        self._root = root
        self._room = room
        self._listed = listed
        self._lines = iter(lines)
        self._refused = refused
        self._facts = (b"", b"")
        self._path: list[bytes] | None = []

    def add(self, origin: bytes, destination: bytes) -> None:
        with self._unless_refused(origin), _writable(destination):
            for name, is_directory in _entries(origin):
                theirs, ours = os.path.join(origin, name), os.path.join(destination, name)  # noqa: PTH118 - bytes
                with self._unless_refused(theirs), contextlib.suppress(FileNotFoundError):
                    if is_directory:
                        self._add_directory(theirs, ours)
                    elif not os.path.lexists(ours):
                        self._add_file(theirs, ours)
                    elif self._is_outdated(theirs, ours):
                        with self._apart() as fresh:
                            self._put(theirs, fresh)
                            os.replace(fresh, ours)  # noqa: PTH105 - bytes

    @contextlib.contextmanager
    def _unless_refused(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except PermissionError:
            if self._refused is None:
                raise
            self._refused.append(path)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[bytes]:
        """A name in a directory of its own."""
        with tempfile.TemporaryDirectory(dir=self._room) as apart:
            yield os.path.join(apart, b"fresh")  # noqa: PTH118 - bytes

    def _add_directory(self, theirs: bytes, ours: bytes) -> None:
        made = False
        if not os.path.lexists(ours):
            with self._apart() as fresh:
                os.mkdir(fresh, 0o700)  # noqa: PTH102 - bytes
                _own(theirs, fresh)
                shutil.copystat(theirs, fresh)
                made = _appears(fresh, ours)
        if stat.S_ISDIR(os.lstat(ours).st_mode):
            self.add(theirs, ours)
            if made:
                shutil.copystat(theirs, ours)

    def _add_file(self, theirs: bytes, ours: bytes) -> None:
        before = _facts(theirs)
        if self._put(theirs, ours) and self._listed is not None:
            self._listed.write(b"%s %s %s\0" % (_facts(ours), before, self._relative(ours)))

    def _put(self, theirs: bytes, ours: bytes) -> bool:
        """``False`` if somebody has just put something there."""
        try:
            os.link(theirs, ours, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except FileExistsError:
            return False
        except OSError:  # no right to (a file of somebody else), or no hard links here
            with self._apart() as fresh:
                shutil.copy2(theirs, fresh, follow_symlinks=False)
                _own(theirs, fresh)
                return _appears(fresh, ours)
        return True

    def _relative(self, ours: bytes) -> bytes:
        return ours.removeprefix(self._root + b"/")

    def _is_outdated(self, theirs: bytes, ours: bytes) -> bool:
        """Whether *ours* is what the first pass has made of another *theirs*."""
        path = self._relative(ours).split(b"/")
        while self._path is not None and self._path < path:
            line = next(self._lines, None)
            if line is None:
                self._path = None
            else:
                *facts, listed = line.split(b" ", 2)
                self._facts, self._path = (facts[0], facts[1]), listed.split(b"/")
        if self._path != path:
            return False
        now = _facts(ours), _facts(theirs)
        return now[0] == self._facts[0] and now[1] not in self._facts


def _entries(directory: bytes) -> list[tuple[bytes, bool]]:
    try:
        with os.scandir(directory) as entries:
            return sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries if not is_own_name(e.name))
    except FileNotFoundError:
        return []


def _facts(path: bytes) -> bytes:
    """What changes with its content: a number alone may be given again."""
    status = os.lstat(path)
    return b"%d.%d.%d" % (status.st_ino, status.st_mtime_ns, status.st_size)


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
