"""Reads the table of contents of a ``pg_dump`` archive in custom format while it streams by.

So a dump that lacks a table, or was cut off, can be told from a whole one by what it says of itself. The form is that
of PostgreSQL's ``pg_backup_archiver.c`` (WriteHead, WriteToc) and ``pg_backup_custom.c``: the table comes first, then
the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from django_snapshots.connectors.postgres.blocks import Blocks

MAGIC = b"PGDMP"
_KNOWN = range(12, 17)
"""The minor numbers of the form's version 1.x that are known: PostgreSQL 9.6 to 18."""
_LARGEST = 32 * 1024 * 1024
"""Bytes of a table of contents that are kept; a larger one is not read."""
_CUSTOM = 1
_NO_DATA = 3
"""archCustom, and K_OFFSET_NO_DATA."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry."""

    kind: str
    """For example ``TABLE DATA``."""
    oid: int
    """Of what it is about, in the database that was dumped."""
    number: int = field(default=0, compare=False)
    """What ``pg_restore --use-list`` calls it."""
    schema: str = field(default="", compare=False)
    name: str = field(default="", compare=False)
    """Unquoted, as the schema is."""
    definition: str = field(default="", compare=False)
    """The statement that makes it; only of a table."""
    copy: str = field(default="", compare=False)
    """The ``COPY`` statement that its rows are for."""
    has_data: bool = field(default=False, compare=False)
    """Whether the archive says that it has a block of data for it."""


class Contents:
    """Takes an archive chunk by chunk, keeps what comes before the data, and follows these."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._tried = 0
        self.items: tuple[Item, ...] | None = None
        """Every entry; ``None`` if the end of the table has not come by, or the form's version is not known."""
        self._blocks: Blocks | None = None
        self._done = False
        self._ended_inside = False

    @property
    def is_cut_off(self) -> bool:
        """Whether the archive has ended before its own end; of a form that is not known nobody can say."""
        if self._blocks is None:
            return self._ended_inside
        unfinished = {item.number for item in self.items or () if item.has_data} - self._blocks.ended
        return bool(unfinished) or not self._blocks.is_between

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. Raises nothing: what is no archive has no items."""
        if self._done:
            if self._blocks is not None:
                self._blocks.feed(chunk)
            return
        self._kept += chunk
        # Doubling keeps the work linear, however large the table is.
        if len(self._kept) >= 2 * self._tried or not chunk:
            self._try()

    def read(self, chunks: Iterable[bytes]) -> tuple[Item, ...] | None:
        """Take from *chunks* what there is of the table, and give every entry; ``None`` as in ``items``."""
        for chunk in chunks:
            self.feed(chunk)
            if self._done:
                break
        self.end()
        return self.items

    def end(self) -> None:
        """There is nothing more."""
        if not self._done:
            self._try()
            self._ended_inside = not self._done
        self._finish(self.items)

    def _try(self) -> None:
        self._tried = len(self._kept)
        read = _Bytes(bytes(self._kept))
        try:
            items = tuple(_items(read))
            self._blocks = Blocks(int_size=read.int_size, compressed=read.compressed)
            self._blocks.feed(read.rest())
            self._finish(items)
        except EOFError:
            if len(self._kept) > _LARGEST:
                self._finish(None)
        except ValueError:
            self._finish(None)

    def _finish(self, items: tuple[Item, ...] | None) -> None:
        self.items = items
        self._done = True
        self._kept.clear()


def _items(read: _Bytes) -> Iterator[Item]:
    if read.take(len(MAGIC)) != MAGIC or read.byte() != 1:
        raise ValueError("no archive")
    minor, _revision = read.byte(), read.byte()
    read.int_size, offset_size, form = read.byte(), read.byte(), read.byte()
    if minor not in _KNOWN or form != _CUSTOM:
        raise ValueError("a version that is not known")
    # Before 1.15 the compression is a number, from then on a byte that names the algorithm.
    read.compressed = bool(read.byte() if minor >= 15 else read.number())
    for _ in range(7):
        read.number()
    for _ in range(3):
        read.text()
    for _ in range(read.number()):
        number, _, _ = read.number(), read.number(), read.text()
        oid, tag, kind = int(read.text() or b"0"), read.words(), read.words()
        read.number()
        definition, _, copy, schema = read.words(), read.text(), read.words(), read.words()
        # The tablespace, and from 1.14 on the access method.
        for _ in range(2 if minor >= 14 else 1):
            read.text()
        if minor >= 16:
            read.number()
        read.text(), read.text()
        while read.text() is not None:
            pass  # what it depends on
        place = read.byte()
        read.take(offset_size)
        yield Item(
            kind=kind,
            oid=oid,
            number=number,
            schema=schema,
            name=tag,
            definition=definition if kind == "TABLE" else "",
            copy=copy,
            has_data=place != _NO_DATA,
        )


class _Bytes:
    """Takes values off the beginning; raises ``EOFError`` where there are not enough bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0
        self.int_size = 4
        self.compressed = False

    def take(self, size: int) -> bytes:
        if size < 0:
            raise ValueError("a length below zero")
        taken = self._content[self._position : self._position + size]
        if len(taken) < size:
            raise EOFError
        self._position += size
        return taken

    def rest(self) -> bytes:
        return self._content[self._position :]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        sign = self.byte()
        value = int.from_bytes(self.take(self.int_size), "little")
        return -value if sign else value

    def text(self) -> bytes | None:
        length = self.number()
        return None if length < 0 else self.take(length)

    def words(self) -> str:
        return (self.text() or b"").decode(errors="replace")
