"""Reads a dump, in constant memory, before anything in it is executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

END = b"-- Dump completed"
"""How the last line of a whole dump begins."""
EVENTS = b"-- django-snapshots: the events follow\n"
"""The line between the two parts of a dump; it comes right after the first part's last line."""

_SANDBOX = re.compile(rb"/\*M?!999999\\- [^\n]*\n?")
_REACH = 4096
"""Bytes within which a line that matters is recognised."""
_QUOTED = rb"`(?:[^`\n]|``)*`"
_ACCOUNT = rb"(?:" + _QUOTED + rb'|"(?:[^"\n]|"")*")'
"""Routines that were made under ANSI_QUOTES keep its quotes."""
_DEFINER = re.compile(rb"\bDEFINER ?= ?(%b(?:@%b)?)" % (_ACCOUNT, _ACCOUNT))
_PATTERNS = (
    rb"DELIMITER (?P<delimiter>;+)(?=\n)",
    rb"(?:/\*!50003 CREATE\*/ /\*!50017 |CREATE (?:OR REPLACE )?|/\*!50013 |/\*!50106 CREATE\*/ /\*!50117 )"
    rb"DEFINER=(?P<definer>%(account)b(?:@%(account)b)?)(?P<function>(?:\*/ /\*!50003 | )(?i:trigger|function) )?",
    rb"(?:CREATE|DROP) (?:TABLE|SEQUENCE) (?:IF (?:NOT )?EXISTS )?(?P<table>%(name)b)",
    rb"ALTER DATABASE (?P<altered>%(name)b)",
    rb"(?P<leaves>USE |(?:/\*!\d+ ?)?(?:CREATE|DROP) (?:DATABASE|SCHEMA)\b)",
    rb"-- Dump completed[^\n]*\n(?P<events>%(events)b)(?=\n)",
)
_LINES = re.compile(
    rb"\n(?:%b)"
    % b"|".join(_PATTERNS)
    % {b"account": _ACCOUNT, b"name": _QUOTED, b"events": re.escape(EVENTS.rstrip())}
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one pass over a dump showed."""

    length: int
    complete: bool
    events_at: int | None
    """The offset of the line that the events follow; ``None`` if the dump has no such line."""
    definers: frozenset[str]
    tables: frozenset[str]
    """Names of the tables and sequences that it creates or drops."""
    altered_databases: frozenset[str]
    leaves_database: bool
    """Whether it has statements that choose, create or drop a database."""
    functions: bool
    """Whether it creates functions or triggers."""
    longest_line: int
    """Bytes; lines shorter than one chunk are not measured."""


class LineLength:
    """Measures the longest line; lines shorter than one chunk are not measured."""

    def __init__(self) -> None:
        self._longest = 0
        self._line = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        first = chunk.find(b"\n")
        if first < 0:
            self._line += len(chunk)
            return
        self._longest = max(self._longest, self._line + first)
        self._line = len(chunk) - chunk.rfind(b"\n") - 1

    @property
    def longest(self) -> int:
        """Bytes, of what was taken so far."""
        return max(self._longest, self._line)


class Scanner:
    """Takes a dump chunk by chunk."""

    def __init__(self) -> None:
        self._buffer = b"\n"
        self._base = -1
        self._seen = -1
        self._in_body = False
        self._length = LineLength()
        self._tail = b""
        self._events_at: int | None = None
        self._definers: set[str] = set()
        self._tables: set[str] = set()
        self._altered: set[str] = set()
        self._leaves = False
        self._functions = False

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._length.feed(chunk)
        self._tail = (self._tail + chunk)[-_REACH:]
        self._buffer += chunk
        whole = self._buffer.rfind(b"\n") + 1
        self._look(len(self._buffer) if len(self._buffer) - whole > _REACH else whole)
        self._keep()

    def _look(self, end: int) -> None:
        """Note what the buffer holds before *end*: whole lines, and the beginning of one that is long."""
        for match in _LINES.finditer(self._buffer, 0, end):
            # The end of a buffer is looked at again together with what follows it.
            if self._base + match.start() > self._seen:
                self._seen = self._base + match.start()
                self._note(match)

    def findings(self) -> Findings:
        """What the dump, now at its end, showed."""
        self._look(len(self._buffer))
        lines = self._tail.rstrip().rsplit(b"\n", 1)
        return Findings(
            length=self._base + len(self._buffer),
            complete=lines[-1].startswith(END),
            events_at=self._events_at,
            definers=frozenset(self._definers),
            tables=frozenset(self._tables),
            altered_databases=frozenset(self._altered),
            leaves_database=self._leaves,
            functions=self._functions,
            longest_line=self._length.longest,
        )

    def _note(self, match: re.Match[bytes]) -> None:
        if match["delimiter"]:
            self._in_body = match["delimiter"] != b";"
        if match["definer"]:
            self._definers.add(_account(match["definer"]))
            self._functions = self._functions or bool(match["function"])
        if match["events"]:
            self._events_at = self._base + match.start("events")
        if not self._in_body:
            self._note_statement(match)

    def _note_statement(self, match: re.Match[bytes]) -> None:
        if match["table"]:
            self._tables.add(_unquoted(match["table"]))
        if match["altered"]:
            self._altered.add(_unquoted(match["altered"]))
        if match["leaves"]:
            self._leaves = True

    def _keep(self) -> None:
        """Keep the last whole lines within reach, from a line's end on."""
        start = self._buffer.find(b"\n", max(0, len(self._buffer) - _REACH))
        cut = len(self._buffer) if start < 0 else start
        self._buffer = self._buffer[cut:]
        self._base += cut


def scan(chunks: Iterable[bytes]) -> Findings:
    """Read a dump to its end."""
    scanner = Scanner()
    for chunk in chunks:
        scanner.feed(chunk)
    return scanner.findings()


def without_sandbox(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Leave out the first line if it is the one that MySQL's client and older ones of MariaDB stumble over."""
    head = b""
    for chunk in chunks:
        head += chunk
        if b"\n" in head or len(head) > _REACH:
            break
    found = _SANDBOX.match(head)
    yield head[found.end() :] if found else head
    yield from chunks


def split(chunks: Iterator[bytes], offset: int) -> tuple[Iterator[bytes], Iterator[bytes]]:
    """Split a stream in two at *offset*; the second must be read after the first has ended."""
    rest: list[bytes] = []

    def before() -> Iterator[bytes]:
        left = offset
        while left > 0 and (chunk := next(chunks, b"")):
            yield chunk[:left]
            if len(chunk) > left:
                rest.append(chunk[left:])
            left -= len(chunk)

    def after() -> Iterator[bytes]:
        yield from rest
        yield from chunks

    return before(), after()


def definer_of(definition: bytes) -> str:
    """The account, as ``user@host``, that a definition which the server has printed runs as."""
    found = _DEFINER.search(definition)
    return _account(found[1]) if found else ""


def _account(quoted: bytes) -> str:
    return "@".join(_unquoted(part) for part in re.findall(_ACCOUNT, quoted))


def _unquoted(name: bytes) -> str:
    return name[1:-1].replace(name[:1] * 2, name[:1]).decode(errors="replace")
