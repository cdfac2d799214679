"""Reads an archive from a source that is trusted only after its last byte.

By code of our own, because ``tarfile`` reads an extended header of any size into memory, keeps every member, and
knows many types that a media archive never has.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import NoReturn

from django_snapshots.artifacts.media_tar import BLOCK, Member, leaves
from django_snapshots.artifacts.media_walk import is_own_name, shown, too_long
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotError, SnapshotIntegrityError

_EXTENDED_LIMIT = 64 * 1024
_LARGEST_ID = 2**32 - 2
_TYPES = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
_TYPES_IN_WORDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}
_TIME = re.compile(rb"(-?)([0-9]{1,12})(?:\.([0-9]{1,9})[0-9]*)?")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_RECORD = re.compile(rb"([0-9]{1,6}) ")


class ArchiveReader:
    """Reads an archive from its chunks, once, and refuses what a media archive never holds.

    A member lies in a directory that the archive has opened, and not left; it comes once, and has no name of a
    restore's own. Only the names in directories that are open are held, as a dump does.

    Iterate ``members``; after each, read all of ``content``. Raises ``SnapshotIntegrityError``.
    """

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._held = memoryview(b"")
        self._left = 0
        self._open: list[tuple[bytes, set[bytes]]] = [(b"", set())]

    def members(self) -> Iterator[Member]:
        """Each member in turn; ends only after the end marks and the last byte of the source."""
        while (block := self._exactly(BLOCK)) != bytes(BLOCK):
            info = self._parsed(block)
            extended: dict[bytes, bytes] = {}
            if info.type == tarfile.XHDTYPE:
                extended = self._extended(info.size)
                info = self._parsed(self._exactly(BLOCK))
            member = self._member(info, extended)
            self._require_place(member)
            self._left = member.size
            yield member
            if self._left:
                raise RuntimeError("The content of a member was not read.")
            if any(self._exactly(-member.size % BLOCK)):
                self.refuse(f"the content of {shown(member.path)} is longer than its header says")
        self._finish()

    def content(self) -> Iterator[memoryview]:
        """The content of the member at hand, in pieces as they come; a piece is valid until the next one."""
        while self._left:
            self._fill()
            piece = self._held[: self._left]
            self._held = self._held[len(piece) :]
            self._left -= len(piece)
            yield piece

    def refuse(self, what: str) -> NoReturn:
        """Raise ``SnapshotIntegrityError``: *what* is wrong with this archive."""
        raise SnapshotIntegrityError(
            f"The media archive {self._name} was refused, and MEDIA_ROOT was not touched: {what}."
        )

    def _require_place(self, member: Member) -> None:
        parent, _, name = member.path.rpartition(b"/")
        while self._open and self._open[-1][0] != parent:
            self._open.pop()
        if not self._open:
            self.refuse(
                f"{shown(member.path)} is not in a directory that the archive has opened: "
                "its parent is missing, closed, a file or a link"
            )
        if is_own_name(name):
            self.refuse(f"{shown(member.path)} has the name of a restore's own directory")
        names = self._open[-1][1]
        if name in names:
            self.refuse(f"{shown(member.path)} is in it twice")
        names.add(name)
        if member.is_directory:
            self._open.append((member.path, set()))

    def _fill(self) -> None:
        while not self._held:
            try:
                chunk = next(self._chunks, None)
            except SnapshotError:
                raise
            except OSError as error:
                raise SnapshotArtifactError(f"The media archive {self._name} could not be read: {error}.") from error
            if chunk is None:
                self.refuse("it is cut off before its end")
            self._held = memoryview(chunk)

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            self._fill()
            parts.append(bytes(self._held[:size]))
            self._held = self._held[len(parts[-1]) :]
            size -= len(parts[-1])
        return b"".join(parts)

    def _finish(self) -> None:
        if any(self._exactly(BLOCK)) or any(self._held) or any(any(chunk) for chunk in self._chunks):
            self.refuse("something follows its end mark")

    def _parsed(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            self.refuse(f"one of its headers is damaged ({error})")

    def _extended(self, size: int) -> dict[bytes, bytes]:
        if not 0 <= size <= _EXTENDED_LIMIT:
            self.refuse(f"it has an extended header of {size} bytes")
        data = self._exactly(size + -size % BLOCK)[:size]
        records: dict[bytes, bytes] = {}
        while data:
            match = _RECORD.match(data)
            length = int(match[1]) if match else 0
            record = data[match.end() : length] if match else b""
            key, equals, value = record[:-1].partition(b"=")
            if length > len(data) or not equals or not record.endswith(b"\n"):
                self.refuse("one of its extended headers is damaged")
            records[key] = value
            data = data[length:]
        return records

    def _member(self, info: tarfile.TarInfo, extended: dict[bytes, bytes]) -> Member:
        path = extended.get(b"path", info.name.encode("utf-8", "surrogateescape"))
        if info.type not in _TYPES or any(key.startswith(b"GNU.sparse") for key in extended):
            self.refuse(f"it holds {shown(path)}, {_TYPES_IN_WORDS.get(info.type, 'which is of a type it never has')}")
        member = Member(
            path=self._safe(path.removesuffix(b"/") if info.type == tarfile.DIRTYPE else path),
            type=info.type,
            mode=info.mode & 0o7777,
            user=self._number(extended.get(b"uid"), info.uid, _LARGEST_ID),
            group=self._number(extended.get(b"gid"), info.gid, _LARGEST_ID),
            modified=self._time(extended.get(b"mtime"), int(info.mtime)),
            size=self._number(extended.get(b"size"), info.size, 2**62),
            link=extended.get(b"linkpath", info.linkname.encode("utf-8", "surrogateescape")),
        )
        self._check(member)
        return member

    def _safe(self, path: bytes) -> bytes:
        parts = path.split(b"/")
        if path.startswith(b"/"):
            self.refuse(f"the path {shown(path)} is absolute")
        if b".." in parts:
            self.refuse(f"the path {shown(path)} has a part '..'")
        if not all(parts) or b"." in parts or b"\0" in path:
            self.refuse(f"the path {shown(path)} is not a plain one")
        if too_long(path):
            self.refuse(f"the path {shown(path)} is too long")
        return path

    def _check(self, member: Member) -> None:
        if member.size and member.type != tarfile.REGTYPE:
            self.refuse(f"{shown(member.path)} is no file and has content")
        if member.is_link and leaves(member.path, member.link):
            self.refuse(f"{shown(member.path)} is a link to {shown(member.link)}, which may leave MEDIA_ROOT")

    def _number(self, text: bytes | None, otherwise: int, largest: int) -> int:
        if text is not None and not _NUMBER.fullmatch(text):
            self.refuse(f"it has a number that is none: {shown(text)}")
        number = otherwise if text is None else int(text)
        if not 0 <= number <= largest:
            self.refuse(f"it has a number out of range: {number}")
        return number

    def _time(self, text: bytes | None, otherwise: int) -> int:
        match = _TIME.fullmatch(str(otherwise).encode() if text is None else text)
        if match is None:
            self.refuse(f"it has a time that is none: {shown(text or b'')}")
        nanoseconds = int(match[2]) * 10**9 + int((match[3] or b"").ljust(9, b"0"))
        return -nanoseconds if match[1] else nanoseconds
