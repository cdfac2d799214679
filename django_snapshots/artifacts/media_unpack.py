"""Builds a tree from an archive that may be hostile: nothing is written outside of one directory of ours.

The archive lists a directory before what is in it, and everything in it before what comes after it. The reader lets
nothing else pass: a member's parent is one of the directories that are open at this point, made here and entered by
descriptor. What lies below a link, below a file, or in a directory that was never listed, has no such parent. What is
listed twice, or what the file system takes for that, meets ``O_EXCL``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django_snapshots.artifacts.media_reader import ArchiveReader
from django_snapshots.artifacts.media_tar import Member
from django_snapshots.artifacts.media_walk import DIRECTORY_FLAGS, Counts, shown
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotError

_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLE = 64 * 1024
_ZEROS = bytes(_HOLE)


@dataclass(kw_only=True)
class Unpacked:
    """What was built."""

    counts: Counts = field(default_factory=Counts)
    other_owners: int = 0
    """Members whose owner this process has no right to set; they belong to its own user now."""


class Unpacker:
    """Writes the members of one archive below one new, empty directory."""

    def __init__(self, reader: ArchiveReader, expected: Mapping[str, Any], check: Callable[[], None]) -> None:
        """*expected* holds the counts that no archive may exceed; *check* raises when the run has been ended."""
        self.result = Unpacked()
        self._reader = reader
        self._expected = expected
        self._check = check
        self._open: list[Member] = []
        self._directory = -1

    def unpack(self, directory: bytes) -> Unpacked:
        """Read the archive to the end of its source. Raises ``SnapshotIntegrityError``, ``SnapshotArtifactError``."""
        self._directory = os.open(directory, DIRECTORY_FLAGS)
        try:
            for member in self._reader.members():
                self._check()
                self._add(member)
            while self._open:
                self._leave()
        finally:
            os.close(self._directory)
        return self.result

    def _add(self, member: Member) -> None:
        parent, _, name = member.path.rpartition(b"/")
        while self._open and self._open[-1].path != parent:  # the reader has seen to it that it is open
            self._leave()
        self._count(member)
        with _explained(member):
            self._create(member, name)

    def _create(self, member: Member, name: bytes) -> None:
        try:
            if member.is_directory:
                self._enter(member, name)
            elif member.is_link:
                self._link(member, name)
            else:
                self._file(member, name)
        except FileExistsError:
            self._reader.refuse(f"{shown(member.path)} is in it twice, as this file system sees names")

    def _count(self, member: Member) -> None:
        counts = self.result.counts
        counts.directories += member.is_directory
        counts.links += member.is_link
        counts.files += not (member.is_directory or member.is_link)
        counts.size += member.size
        for key, number in counts.as_metadata().items():
            limit = self._expected.get(key)
            if isinstance(limit, int) and number > limit:
                self._reader.refuse(f"it holds more {key} than the {limit} that the manifest says")

    def _enter(self, member: Member, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=self._directory)
        descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=self._directory)
        os.close(self._directory)
        self._directory = descriptor
        self._open.append(member)

    def _leave(self) -> None:
        """Back to the parent; only now the directory gets its mode, which may forbid to write in it, and its time."""
        member = self._open.pop()
        parent = os.open(b"..", DIRECTORY_FLAGS, dir_fd=self._directory)
        try:
            with _explained(member):
                self._finish(self._directory, member)
        finally:
            os.close(self._directory)
            self._directory = parent

    def _file(self, member: Member, name: bytes) -> None:
        descriptor = os.open(name, _FILE_FLAGS, 0o600, dir_fd=self._directory)
        try:
            offset = 0
            for piece in self._reader.content():
                offset = _write_with_holes(descriptor, piece, offset)
                self._check()
            os.ftruncate(descriptor, member.size)
            self._finish(descriptor, member)
        finally:
            os.close(descriptor)

    def _link(self, member: Member, name: bytes) -> None:
        os.symlink(member.link, name, dir_fd=self._directory)
        self._own(
            member, lambda user, group: os.chown(name, user, group, dir_fd=self._directory, follow_symlinks=False)
        )
        os.utime(name, ns=(member.modified, member.modified), dir_fd=self._directory, follow_symlinks=False)

    def _finish(self, descriptor: int, member: Member) -> None:
        self._own(member, lambda user, group: os.fchown(descriptor, user, group))
        os.fchmod(descriptor, member.mode & 0o777)
        os.utime(descriptor, ns=(member.modified, member.modified))

    def _own(self, member: Member, change: Callable[[int, int], None]) -> None:
        """Give it to its owner; without that right at least to its group, and count it."""
        try:
            change(member.user, member.group)
        except PermissionError:
            self.result.other_owners += 1
            with contextlib.suppress(PermissionError):
                change(-1, member.group)


def _write_with_holes(descriptor: int, piece: memoryview, offset: int) -> int:
    """Write *piece* at *offset*, leaving out aligned blocks of zeros; return where it ends."""
    while piece:
        block = bytes(piece[: _HOLE - offset % _HOLE])
        if block != _ZEROS[: len(block)]:
            _write_all(descriptor, block, offset)
        offset += len(block)
        piece = piece[len(block) :]
    return offset


def _write_all(descriptor: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextlib.contextmanager
def _explained(member: Member) -> Iterator[None]:
    try:
        yield
    except SnapshotError:
        raise
    except OSError as error:
        room = " Make room on its file system." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise SnapshotArtifactError(
            f"The media file {shown(member.path)} could not be restored beside MEDIA_ROOT, which was not touched: "
            f"{error.strerror}.{room}"
        ) from error
