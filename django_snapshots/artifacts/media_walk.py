"""Walks ``MEDIA_ROOT`` without following a link, and keeps account of what can't go into the archive.

Names are bytes from here to the archive and back: a file system promises no encoding. Every directory is opened from
the root, part by part and without following links, so that nobody who can rename things inside leads the walk out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from django_snapshots.exceptions import SnapshotArtifactError
from django_snapshots.marked import is_name

STAGING_PREFIX = b".django-snapshots-staging-"
"""Begins the name of a restore's own directory where it has to be inside of ``MEDIA_ROOT``."""
MAX_PATH = 4095
"""Bytes of a path in the archive, relative to ``MEDIA_ROOT``: Linux's PATH_MAX without its NUL."""
MAX_NAME = 255
MAX_DEPTH = 256
"""Levels of directories: far beyond any media tree, and within what removing a tree may recurse."""
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LISTED = 100
_NAMED = 10
_SHOWN = 300
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_KINDS = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a named pipe", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}


def is_own_name(name: bytes) -> bool:
    """Whether *name*, without its directory, is one that restores give to what they build and keep."""
    return name.startswith(STAGING_PREFIX) or is_name(os.fsdecode(name))


def shown(path: bytes) -> str:
    """*path* for a message: in quotes, on one line, whatever is in it, and not endless."""
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return f'"{text}"' if len(text) <= _SHOWN else f'"{text[:_SHOWN]}…"'


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing below the root, while the directory that holds it is open."""

    path: bytes
    """Relative to the root, separated by ``/``."""
    directory: int
    """Descriptor of the open directory that it is in; of itself if it is a directory."""
    status: os.stat_result

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


@dataclass(kw_only=True)
class Counts:
    """How much is in an archive."""

    files: int = 0
    directories: int = 0
    links: int = 0
    size: int = 0
    """Bytes of all files' content."""

    def as_metadata(self) -> dict[str, int]:
        return {"files": self.files, "directories": self.directories, "links": self.links, "bytes": self.size}


@dataclass(kw_only=True)
class Findings:
    """What one walk came across: counts, and bounded lists of what a person should know."""

    report_unreadable: bool = False
    """Go on without what can't be read, and list it, instead of failing."""
    counts: Counts = field(default_factory=Counts)
    allocated: int = 0
    """Bytes on disk; fewer than the content's where files have holes."""
    complete: bool = False
    warnings: list[str] = field(default_factory=list)
    warning_count: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0

    @property
    def failing(self) -> bool:
        """Whether the dump is going to fail; the walk then goes on only to name more of the causes."""
        return self.unreadable_count > 0 and not self.report_unreadable

    def warn(self, sentence: str) -> None:
        """Keep *sentence*; after the first hundred only their number."""
        self.warning_count += 1
        if len(self.warnings) < _LISTED:
            self.warnings.append(sentence)

    def trouble(self, path: bytes, error: OSError) -> None:
        """*path* could not be opened, listed or read. What has just gone is a warning, the rest is unreadable."""
        if error.errno in _GONE:
            self.warn(f"{shown(path)} vanished or was replaced while the media files were read; it was left out.")
            return
        self.cannot_read(path, error.strerror or str(error))

    def cannot_read(self, path: bytes, why: str) -> None:
        """*path* can't be in the archive. Raises once enough of them are known to fail with."""
        self.unreadable_count += 1
        if len(self.unreadable) < _LISTED:
            self.unreadable.append(f"{shown(path)}: {why}")
        if self.failing and self.unreadable_count >= _NAMED:
            self.raise_if_failing()

    def raise_if_failing(self) -> None:
        """Raise ``SnapshotArtifactError`` with up to ten of the causes, if there are any that forbid a snapshot."""
        if not self.failing:
            return
        more = " (there may be more)" if self.unreadable_count >= _NAMED else ""
        raise SnapshotArtifactError(
            f"These media files can't be read, so a snapshot would lack them{more}: "
            f"{'; '.join(self.unreadable[:_NAMED])}. Let the worker's user read them, remove them, or use "
            'MediaArtifact(unreadable="report") to go on without them.'
        )


def walk(root: int, findings: Findings) -> Iterator[Entry]:
    """Everything below the open directory *root*: each directory before what is in it, files before subdirectories,
    names in order of their bytes. Holds the names of one directory at a time, and the subdirectories still to come."""
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            directory = open_directory(root, path)
        except OSError as error:
            findings.trouble(path, error)
            continue
        try:
            subdirectories = yield from _inside(directory, path, findings)
        finally:
            os.close(directory)
        pending.extend(reversed(subdirectories))


def open_directory(root: int, path: bytes) -> int:
    """A descriptor of *path* below *root*, without following any link. Raises ``OSError``."""
    current = os.open(b".", DIRECTORY_FLAGS, dir_fd=root)
    for part in filter(None, path.split(b"/")):
        try:
            following = os.open(part, DIRECTORY_FLAGS, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current


def too_long(path: bytes) -> bool:
    """Whether *path* is longer or deeper than an archive of ours may hold."""
    parts = path.split(b"/")
    return len(path) > MAX_PATH or len(parts) > MAX_DEPTH or any(len(part) > MAX_NAME for part in parts)


def kind_in_words(mode: int) -> str:
    """What a file of *mode* is that is no file, directory or link."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def _inside(directory: int, path: bytes, findings: Findings) -> Generator[Entry, None, list[bytes]]:
    """Yield the directory itself and what is in it; return the paths of its subdirectories."""
    try:
        names = _names(directory)
        status = os.fstat(directory)
    except OSError as error:
        findings.trouble(path, error)
        return []
    if path:
        yield Entry(path=path, directory=directory, status=status)
    subdirectories = []
    for name, is_directory in names:
        below = path + b"/" + name if path else name
        if not _wanted(below, findings):
            continue
        if is_directory:
            subdirectories.append(below)
            continue
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            findings.trouble(below, error)
        else:
            yield Entry(path=below, directory=directory, status=status)
    return subdirectories


def _names(directory: int) -> list[tuple[bytes, bool]]:
    with os.scandir(directory) as entries:
        return sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries)


def _wanted(path: bytes, findings: Findings) -> bool:
    if is_own_name(path.rpartition(b"/")[2]):
        findings.warn(f"{shown(path)} is what a restore has kept or left; it was left out. It may hold old files.")
        return False
    if too_long(path):
        findings.cannot_read(path, f"its path is longer than {MAX_PATH} bytes or {MAX_DEPTH} levels")
        return False
    return True
