"""Leaves of a dump what single tables are made of: their definitions and rows, and every sequence that these may use.

The dump tool heads each part with a comment that names it. Rows have no line's end in them, so what stands at the
beginning of a line is the tool's own; but in the body of a trigger or routine anything may stand there, so nothing is
believed of what lies between two DELIMITER lines. Such bodies are left out, and with them all triggers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

_REACH = 65536
"""Bytes within which a line that matters has its end; longer ones are rows."""
_NAME = rb"`((?:[^`\n]|``)*)`"
_MARKS = re.compile(rb"^(?:-- (?P<heading>[^\n]*)|DELIMITER (?P<delimiter>[^\n]*))\n", re.MULTILINE)
_TABLE = re.compile(rb"(?:Table structure|Dumping data) for table " + _NAME)
_SEQUENCE = re.compile(rb"Sequence structure for " + _NAME)
_OTHERS = (
    b"Temporary ", b"Final view ", b"Dumping events ", b"Dumping routines ", b"Dump completed", b"django-snapshots: ",
)  # fmt: skip


class Excerpt:
    """Passes on what belongs to *tables*, in constant memory; reads the whole of what it is given."""

    def __init__(self, tables: Collection[str]) -> None:
        self._tables = frozenset(tables)
        self._wanted = True
        """What comes before the first heading sets the session up."""
        self._in_body = False

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        kept = b""
        within = False
        for chunk in chunks:
            kept += chunk
            end = kept.rfind(b"\n") + 1
            if not end and len(kept) <= _REACH:
                continue
            whole, kept = (kept[:end], kept[end:]) if end else (kept, b"")
            # The rest of a line whose beginning is gone already.
            first = len(whole) if within and not end else whole.find(b"\n") + 1 if within else 0
            if first and self._passes:
                yield whole[:first]
            yield from self._picked(whole[first:])
            within = not end
            if len(kept) > _REACH:
                if self._passes:
                    yield kept
                kept, within = b"", True
        if self._passes:
            yield kept

    @property
    def _passes(self) -> bool:
        return self._wanted and not self._in_body

    def _picked(self, lines: bytes) -> Iterator[bytes]:
        position = 0
        for mark in _MARKS.finditer(lines):
            if self._passes:
                yield lines[position : mark.start()]
            self._note(mark)
            position = mark.end()
        if self._passes:
            yield lines[position:]

    def _note(self, mark: re.Match[bytes]) -> None:
        if mark["delimiter"] is not None:
            self._in_body = mark["delimiter"].strip() != b";"
        elif not self._in_body:
            self._go_to(mark["heading"])

    def _go_to(self, heading: bytes) -> None:
        if table := _TABLE.match(heading):
            self._wanted = table[1].replace(b"``", b"`").decode(errors="replace") in self._tables
        elif _SEQUENCE.match(heading):
            self._wanted = True
        elif heading.startswith(_OTHERS):
            self._wanted = False
