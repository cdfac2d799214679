"""Follows the data of a ``pg_dump`` archive in custom format while they stream by, to see that each is there whole.

The form is that of PostgreSQL's ``pg_backup_custom.c``: behind the table of contents comes one block for each entry
that has data, in pieces that a number of bytes precedes and of which an empty one is the last. Nothing says that the
archive itself is at its end, so a program that was cut off and yet exited with 0 is told by what is missing alone.
"""

from __future__ import annotations

from collections.abc import Generator

_ROWS, _LARGE_OBJECTS = 1, 3
"""BLK_DATA and BLK_BLOBS."""

_More = Generator[None, bytes, None]


class Blocks:
    """Takes what follows the table of contents chunk by chunk, and keeps next to nothing of it."""

    def __init__(self, *, int_size: int, compressed: bool) -> None:
        """*int_size* is that of the archive's numbers in bytes."""
        self.ended: set[int] = set()
        """The numbers of the entries whose data have come by to their end."""
        self.is_broken = False
        """Whether something stood where no archive has it; nothing behind it is read."""
        self._int_size = int_size
        self._compressed = compressed
        self._buffer = b""
        self._position = 0
        self._between = True
        self._walk = self._blocks()
        next(self._walk)

    @property
    def is_between(self) -> bool:
        """Whether the last byte was the last of a block, or there was none."""
        return self._between and not self.is_broken

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. Raises nothing."""
        if self.is_broken or not chunk:
            return
        try:
            self._walk.send(chunk)
        except ValueError:
            self.is_broken = True

    def _blocks(self) -> _More:
        while True:
            self._between = True
            kind = (yield from self._take(1))[0]
            self._between = False
            number = yield from self._number()
            if kind == _LARGE_OBJECTS:
                while (yield from self._number()):  # its oid
                    yield from self._pieces()
            elif kind != _ROWS:
                raise ValueError("no block")
            elif self._compressed:
                yield from self._pieces()
            else:
                yield from self._rows()
            self.ended.add(number)

    def _pieces(self) -> _More:
        while size := (yield from self._number()):
            yield from self._skip(size)

    def _rows(self) -> _More:
        """As ``_pieces``, but one search instead of a step for each row: ``COPY``'s text has no zero byte, and no size
        but that of the last piece is all zeros."""
        end = bytes(1 + self._int_size)
        while (found := self._buffer.find(end, self._position)) < 0:
            self._position = max(self._position, len(self._buffer) - len(end) + 1)
            yield from self._more()
        self._position = found + len(end)

    def _number(self) -> Generator[None, bytes, int]:
        content = yield from self._take(1 + self._int_size)
        value = int.from_bytes(content[1:], "little")
        return -value if content[0] else value

    def _take(self, size: int) -> Generator[None, bytes, bytes]:
        while len(self._buffer) - self._position < size:
            yield from self._more()
        taken = self._buffer[self._position : self._position + size]
        self._position += size
        return taken

    def _skip(self, size: int) -> _More:
        if size < 0:
            raise ValueError("a length below zero")
        while (there := len(self._buffer) - self._position) < size:
            size -= there
            self._position = len(self._buffer)
            yield from self._more()
        self._position += size

    def _more(self) -> _More:
        chunk = yield
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
