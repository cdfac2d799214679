"""``MEDIA_ROOT`` as a tar stream: nothing is written anywhere, and no more than a chunk of a file is held."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Generator

from django_snapshots.artifacts.media_tar import END, Member, header, leaves, padding
from django_snapshots.artifacts.media_walk import Entry, Findings, kind_in_words, shown, walk
from django_snapshots.transfer import CHUNK_SIZE

# O_NONBLOCK: what was a file when it was listed may be a named pipe now, and opening that would wait for a writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ZEROS = bytes(CHUNK_SIZE)


def archive(root: int, location: bytes, findings: Findings) -> Generator[bytes, None, None]:
    """The tar stream of the open directory *root*, whose real path is *location*; fills *findings*.

    Raises ``SnapshotArtifactError`` if something can't be read and *findings* doesn't allow that; the stream has no
    end marks then.
    """
    for entry in walk(root, findings):
        mode = entry.status.st_mode
        if stat.S_ISDIR(mode):
            yield from _directory(entry, findings)
        elif stat.S_ISREG(mode):
            yield from _file(entry, findings)
        elif stat.S_ISLNK(mode):
            yield from _link(entry, location, findings)
        else:
            findings.warn(f"{shown(entry.path)} is {kind_in_words(mode)}; it was left out.")
    findings.raise_if_failing()
    yield END
    findings.complete = True


def _directory(entry: Entry, findings: Findings) -> Generator[bytes, None, None]:
    findings.counts.directories += 1
    yield header(_member(entry.path, entry.status, tarfile.DIRTYPE))


def _file(entry: Entry, findings: Findings) -> Generator[bytes, None, None]:
    try:
        descriptor = os.open(entry.name, _FILE_FLAGS, dir_fd=entry.directory)
    except OSError as error:
        findings.trouble(entry.path, error)
        return
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            findings.warn(f"{shown(entry.path)} was replaced while the media files were read; it was left out.")
        elif not findings.failing:
            yield header(_member(entry.path, status, tarfile.REGTYPE, size=status.st_size))
            yield from _content(descriptor, status, entry.path, findings)
            findings.counts.files += 1
            findings.counts.size += status.st_size
            findings.allocated += min(status.st_blocks * 512, status.st_size)
    finally:
        os.close(descriptor)


def _content(descriptor: int, status: os.stat_result, path: bytes, findings: Findings) -> Generator[bytes, None, None]:
    """Exactly as many bytes as the header has announced, and zeros up to the end of the block."""
    left = status.st_size
    try:
        while left and (chunk := os.read(descriptor, min(left, CHUNK_SIZE))):
            left -= len(chunk)
            yield chunk
    except OSError as error:
        findings.cannot_read(path, f"{error.strerror}, {left} bytes before its end")
    else:
        _note_changes(os.fstat(descriptor), status, left, path, findings)
    if findings.failing:
        return
    while left:
        yield _ZEROS[:left]
        left -= min(left, len(_ZEROS))
    yield padding(status.st_size)


def _note_changes(now: os.stat_result, before: os.stat_result, left: int, path: bytes, findings: Findings) -> None:
    if left:
        findings.warn(
            f"{shown(path)} was cut short while it was read; its last {left} bytes are zeros in the snapshot."
        )
    elif (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        findings.warn(f"{shown(path)} was written to while it was read; the snapshot may hold a mixture.")


def _link(entry: Entry, location: bytes, findings: Findings) -> Generator[bytes, None, None]:
    try:
        target = os.readlink(entry.name, dir_fd=entry.directory)
    except OSError as error:
        # EINVAL: it is no link any more.
        findings.warn(f"{shown(entry.path)} vanished or was replaced ({error.strerror}); it was left out.")
        return
    stored = portable_target(location, entry.path, target)
    if stored is None:
        findings.warn(f"{shown(entry.path)} is a link that leaves MEDIA_ROOT, to {shown(target)}; it was left out.")
        return
    findings.counts.links += 1
    yield header(_member(entry.path, entry.status, tarfile.SYMTYPE, link=stored))


def portable_target(location: bytes, path: bytes, target: bytes) -> bytes | None:
    """The target to store for the link at *path* below *location*; ``None`` if it leads out of there.

    It stays as it is where that is safe anywhere. An absolute one, or one with a ``..`` behind a name, is written
    relative to the link and without detours.
    """
    where = location + b"/" + path
    if is_loop(where):
        return None if leaves(path, target) else target
    real = os.path.realpath(where)
    if real != location and not real.startswith(location.rstrip(b"/") + b"/"):
        return None
    if not leaves(path, target):
        return target
    relative = os.path.relpath(real, where.rpartition(b"/")[0])
    return None if leaves(path, relative) else relative


def is_loop(path: bytes) -> bool:
    """Whether the link at *path* leads to itself, so that it leads nowhere."""
    try:
        os.stat(path)  # noqa: PTH116 - a path of bytes
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _member(path: bytes, status: os.stat_result, kind: bytes, *, size: int = 0, link: bytes = b"") -> Member:
    return Member(
        path=path,
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        user=status.st_uid,
        group=status.st_gid,
        modified=status.st_mtime_ns,
        size=size,
        link=link,
    )
