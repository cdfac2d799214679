"""The settings at the beginning of a script that ``pg_restore`` wrote."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

_PREAMBLE_LIMIT = 64 * 1024
_SETTING = re.compile(rb"SET (\w+) = [^\n]*;\n")
_FIRST_ENTRY = re.compile(rb"^-- (Name|Data for Name|TOC entry)", re.MULTILINE)


def without_unknown_settings(chunks: Iterator[bytes], known: Collection[str]) -> Iterator[bytes]:
    """Leave out of a script's preamble the settings that the server, being older than ``pg_dump``, doesn't know; and a
    BEGIN, because whoever runs it has begun."""
    preamble = b""
    for chunk in chunks:
        preamble += chunk
        if _FIRST_ENTRY.search(preamble) or len(preamble) > _PREAMBLE_LIMIT:
            break
    first = _FIRST_ENTRY.search(preamble)
    end = first.start() if first else len(preamble)

    def known_only(match: re.Match[bytes]) -> bytes:
        return match[0] if match[1].decode() in known else b""

    yield _SETTING.sub(known_only, preamble[:end]).replace(b"\nBEGIN;\n", b"\n") + preamble[end:]
    yield from chunks


def unknown_settings(script: bytes, known: Collection[str]) -> set[str]:
    """The settings in a script's preamble that are not *known*."""
    first = _FIRST_ENTRY.search(script)
    preamble = script[: first.start()] if first else script
    return {match[1].decode() for match in _SETTING.finditer(preamble)} - set(known)
