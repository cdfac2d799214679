"""The format of the archive: a POSIX pax tar with the standard library's headers, which any ``tar`` opens."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from django_snapshots.artifacts.media_walk import MAX_PATH
from django_snapshots.transfer import CHUNK_SIZE

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One header of the archive: a file, a directory or a symbolic link."""

    path: bytes
    """Relative, without ``.`` or ``..``, separated by ``/``, no longer than a file system takes."""
    type: bytes
    mode: int
    """Permission bits, with set-user-id and its like as they were."""
    user: int
    group: int
    modified: int
    """Nanoseconds since 1970, UTC."""
    size: int = 0
    """Bytes of content that follow; not 0 only for a file."""
    link: bytes = b""

    @property
    def is_directory(self) -> bool:
        return self.type == tarfile.DIRTYPE

    @property
    def is_link(self) -> bool:
        return self.type == tarfile.SYMTYPE


def header(member: Member) -> bytes:
    """The blocks that announce *member*: a pax extended header where ustar's fields can't hold it, then its own."""
    info = tarfile.TarInfo(member.path.decode("utf-8", "surrogateescape"))
    info.type, info.size, info.mode = member.type, member.size, member.mode
    info.uid, info.gid = member.user, member.group
    info.linkname = member.link.decode("utf-8", "surrogateescape")
    seconds, nanoseconds = divmod(member.modified, 10**9)
    info.mtime = seconds
    if nanoseconds:
        info.pax_headers = {"mtime": _decimal(member.modified)}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """The zeros that fill the last block of *size* bytes of content."""
    return bytes(-size % BLOCK)


def joined(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """*chunks* in pieces of about ``CHUNK_SIZE``, so that many small files don't make many small steps."""
    parts: list[bytes] = []
    length = 0
    for chunk in chunks:
        parts.append(chunk)
        length += len(chunk)
        if length >= CHUNK_SIZE:
            yield b"".join(parts)
            parts, length = [], 0
    if parts:
        yield b"".join(parts)


def leaves(path: bytes, target: bytes) -> bool:
    """Whether a symbolic link at *path* to *target* could lead out of the root, whatever else is in the tree.

    A safe target is relative, climbs by leading ``..`` no higher than the root, and names only what lies below from
    there. If every link of a tree is safe in this way then no chain of them leads out: a ``..`` is only ever followed
    from the link's own directory, which is a real one.
    """
    parts = target.split(b"/")
    climbs = 0
    while climbs < len(parts) and parts[climbs] == b"..":
        climbs += 1
    return (
        not target
        or target.startswith(b"/")
        or b"\0" in target
        or len(target) > MAX_PATH
        or climbs > path.count(b"/")
        or b".." in parts[climbs:]
    )


def _decimal(nanoseconds: int) -> str:
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{rest:09d}"
