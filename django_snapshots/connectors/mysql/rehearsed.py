"""Makes a dump fit for a schema that only rehearses: nothing in it reaches the target, and no event fires."""

from __future__ import annotations

import re
from collections.abc import Iterator

from django_snapshots.connectors.mysql.server import quote
from django_snapshots.exceptions import SnapshotPreflightError

_REACH = 65536
"""Bytes within which a line that matters has its end; longer ones are rows."""
_NAME = rb"`(?:[^`\n]|``)*`"
_HEAD = re.compile(rb"^/\*!50106 CREATE\*/", re.MULTILINE)
_EVENT = re.compile(rb"/\*!50106 CREATE\*/ [^\n]*?\bEVENT (?P<name>" + _NAME + rb") ON SCHEDULE ")
_STATUS = re.compile(rb"(?P<before> ON COMPLETION (?:NOT )?PRESERVE )(?P<status>ENABLE|DISABLE)\b")
_ALTER = re.compile(rb"^(ALTER DATABASE )" + _NAME, re.MULTILINE)
_COLUMN = re.compile(rb"^  `[^\n]* DEFAULT [^\n]*?nextval\([^\n]*$", re.MULTILINE)
_NEXT = re.compile(rb"nextval\(" + _NAME + rb"\.")


class Rehearsal:
    """Rewrites what names the dumped database, line by line, in constant memory."""

    def __init__(self, schema: str) -> None:
        self._schema = quote(schema).encode()
        self.enabled: set[str] = set()
        """Events that the dump enables; they are loaded disabled."""

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        kept = b""
        within = False
        for chunk in chunks:
            kept += chunk
            end = kept.rfind(b"\n") + 1
            if not end and len(kept) <= _REACH:
                continue
            whole, kept = (kept[:end], kept[end:]) if end else (kept, b"")
            first = whole.find(b"\n") + 1 if within else 0
            yield whole[:first] if end or not within else whole
            if end or not within:
                yield self._rewritten(whole[first:])
            within = not end
            if len(kept) > _REACH:
                yield self._rewritten(kept)
                kept, within = b"", True
        yield kept if within else self._rewritten(kept)

    def _rewritten(self, text: bytes) -> bytes:
        if b"ALTER DATABASE " in text:
            text = _ALTER.sub(lambda match: match[1] + self._schema, text)
        if b"nextval(" in text:
            text = _COLUMN.sub(lambda line: _NEXT.sub(b"nextval(" + self._schema + b".", line[0]), text)
        if b"/*!50106 CREATE*/" in text:
            text = self._disabled(text)
        return text

    def _disabled(self, text: bytes) -> bytes:
        position = 0
        done = []
        for head in _HEAD.finditer(text):
            event = _EVENT.match(text, head.start())
            status = _STATUS.search(text, event.end()) if event else None
            if event is None or status is None:
                raise SnapshotPreflightError(
                    "The dump has an event in a form that is not known, so it could fire while the dump is loaded; "
                    "nothing was touched."
                )
            if status["status"] == b"ENABLE":
                self.enabled.add(event["name"][1:-1].replace(b"``", b"`").decode(errors="surrogateescape"))
            done += [text[position : status.start("status")], b"DISABLE"]
            position = status.end("status")
        return b"".join([*done, text[position:]])


def enabled(text: bytes) -> bytes:
    """The text of an event that was loaded disabled, as the dump has it."""
    start = re.search(rb" EVENT " + _NAME + rb" ON SCHEDULE ", text)
    assert start is not None  # noqa: S101 - the server's own form
    return text[: start.end()] + _STATUS.sub(lambda match: match["before"] + b"ENABLE", text[start.end() :], count=1)
