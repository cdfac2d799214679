"""The layout of an archive: where each byte of it belongs, and what it has to be.

A POSIX tar that is determined by the snapshot alone: fixed modes, owners, times, order and padding. So a reader can
say of every byte beside the artifacts what it must be, and nothing else can be in an archive: no other member, no
link, no path that leaves. The form is specified in ``docs/reference/format.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.manifest import MANIFEST_FILENAME, MAX_MANIFEST_SIZE, ArtifactRecord, Snapshot

BLOCK = 512
END = bytes(2 * BLOCK)

_LARGEST = 8**11 - 1
"""What the eleven octal digits of a header can hold: 8 GiB less a byte, or seconds until the year 2242."""
_NAME_LENGTH = 100
_NUMBER = re.compile(rb"[0-7]{11}\0")
_FILE, _EXTENDED = b"0", b"x"
_MOST_BYTES = 2**63 - 1
"""A file system has no larger file; more is a lie that no arithmetic should follow."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One artifact in an archive."""

    record: ArtifactRecord
    header: bytes
    """All blocks before its content: a ustar header, with an extended one before it where that is too small."""
    position: int
    """Where these begin, in bytes from the archive's first one."""

    @property
    def start(self) -> int:
        """Where the content begins."""
        return self.position + len(self.header)

    @property
    def end(self) -> int:
        """Where the content ends and the padding begins."""
        return self.start + self.record.size

    @property
    def after(self) -> int:
        """Where the next member begins."""
        return self.end + len(padding(self.record.size))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything of one archive lies."""

    members: tuple[Member, ...]
    """In the manifest's order."""
    end: int
    """Where the two empty blocks at the end begin."""

    @property
    def size(self) -> int:
        """Bytes of the whole archive."""
        return self.end + len(END)


def padding(size: int) -> bytes:
    """The zeros that fill the last block of *size* bytes of content."""
    return bytes(-size % BLOCK)


def layout(snapshot: Snapshot, manifest_size: int) -> Layout:
    """Where the artifacts of *snapshot* lie behind a manifest of *manifest_size* bytes.

    Raises ``SnapshotIntegrityError`` for sizes that no file can have.
    """
    position = BLOCK + manifest_size + len(padding(manifest_size))
    members: list[Member] = []
    for number, record in enumerate(snapshot.artifacts):
        member = Member(record=record, header=_artifact_header(snapshot.name, number, record), position=position)
        members.append(member)
        position = member.after
        if position > _MOST_BYTES:
            raise SnapshotIntegrityError(f"The manifest gives {record.filename} a size that no file can have.")
    return Layout(members=tuple(members), end=position)


def manifest_header(name: str, size: int, created_at: datetime) -> bytes:
    """The first block of the archive of the snapshot called *name*."""
    return _header(name, MANIFEST_FILENAME, size, _seconds(created_at))


def read_manifest_header(block: bytes, name: str, where: str) -> int:
    """The size of the manifest that follows *block*, the first one of *name*'s archive.

    Raises ``SnapshotIntegrityError`` that names the archive as *where*.
    """
    if len(block) < BLOCK or block[148:156] != _checksum(block):
        raise SnapshotIntegrityError(f"{where} does not begin with the header of a tar archive: damaged, or no tar.")
    fields = [block[start : start + 12] for start in (124, 136)]
    if all(_NUMBER.fullmatch(field) for field in fields):
        size, seconds = (int(field[:11], 8) for field in fields)
        if block == _header(name, MANIFEST_FILENAME, size, seconds):
            if size > MAX_MANIFEST_SIZE:
                raise SnapshotIntegrityError(f"{where} has a manifest that is larger than {MAX_MANIFEST_SIZE} bytes.")
            return size
    first = b"/".join(part.split(b"\0")[0] for part in (block[345:500], block[:100]) if part[:1] != b"\0")
    raise SnapshotIntegrityError(
        f"{where} begins with {first.decode('ascii', 'replace')!r}, and not with {name}/{MANIFEST_FILENAME} as django-"
        "snapshots writes it: it is no archive of a snapshot, or was renamed or packed anew by hand."
    )


def _artifact_header(name: str, number: int, record: ArtifactRecord) -> bytes:
    records = b"".join(_records(name, record))
    seconds = _seconds(record.created_at)
    size = record.size if record.size <= _LARGEST else 0
    if not records:
        return _header(name, record.filename, size, seconds)
    extended = _header(name, f"PaxHeaders/{number}", len(records), seconds, _EXTENDED)
    shown = record.filename if _fits(record.filename) else f"artifact-{number}"
    return b"".join((extended, records, padding(len(records)), _header(name, shown, size, seconds)))


def _records(name: str, record: ArtifactRecord) -> Iterator[bytes]:
    """What ustar can't say of *record*, as records of pax."""
    if not _fits(record.filename):
        yield _record("path", f"{name}/{record.filename}")
    if record.size > _LARGEST:
        yield _record("size", str(record.size))


def _fits(filename: str) -> bool:
    return filename.isascii() and len(filename) <= _NAME_LENGTH


def _record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = len(text)
    # The number counts its own digits too.
    while length != len(text) + len(str(length)):
        length = len(text) + len(str(length))
    return str(length).encode() + text


def _header(prefix: str, name: str, size: int, seconds: int, kind: bytes = _FILE) -> bytes:
    """One block of ustar: private to its owner, who is number 0 without a name."""
    block = b"".join(
        (
            name.encode("ascii").ljust(100, b"\0"),
            b"0000600\0" + b"0000000\0" * 2,
            b"%011o\0" % size,
            b"%011o\0" % seconds,
            b" " * 8,
            kind,
            bytes(100),
            b"ustar\00000",
            bytes(32 + 32),
            b"0000000\0" * 2,
            prefix.encode("ascii").ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + _checksum(block) + block[156:]


def _checksum(block: bytes) -> bytes:
    """The header's checksum field, which counts as blanks itself."""
    return b"%06o\0 " % (sum(block[:148]) + sum(b" " * 8) + sum(block[156:]))


def _seconds(moment: datetime) -> int:
    return min(max(int(moment.timestamp()), 0), _LARGEST)
