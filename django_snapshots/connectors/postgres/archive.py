"""What the beginning of a ``pg_dump`` archive in custom format says: who wrote it, and its table of contents."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django_snapshots.connectors.postgres.clients import Clients, choose, major_of
from django_snapshots.connectors.postgres.feeding import Feeder
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotIntegrityError
from django_snapshots.processes import Processes
from django_snapshots.transfer import Source

# pg_backup_archiver.c, WriteHead: "PGDMP", version, sizes, format, compression, seven numbers of time, three strings.
_HEADER_NUMBERS = 7
_ENTRY = re.compile(r"(?P<id>\d+); \d+ \d+ (?P<rest>.*)")
_MADE_IN_SCHEMAS = (
    *("TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "FUNCTION", "PROCEDURE", "AGGREGATE"),
    *("TYPE", "DOMAIN", "OPERATOR", "COLLATION"),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the table of contents."""

    number: str
    rest: str
    """Kind, schema, name and owner, separated by spaces and not to be told apart for certain."""

    def is_about(self, subject: str, roles: Collection[str]) -> bool:
        """Whether this is *subject*, ``kind schema name`` with ``-`` for no schema; an owner may follow.

        Between subjects that begin alike the owner decides: it is one of *roles* or a single word.
        """
        start = f"{_listed(subject)} "
        owner = f"{self.rest} ".removeprefix(start).strip()
        return f"{self.rest} ".startswith(start) and (" " not in owner or owner in roles)

    def owner(self, roles: Collection[str]) -> str:
        """The owner: the longest of *roles* that the line ends with, else its last word; empty if it has none."""
        fitting = [role for role in roles if self.rest.endswith(f" {_listed(role)}")]
        return max(fitting, key=len) if fitting else self.rest.rpartition(" ")[2]

    def creates_in(self, schema: str) -> bool:
        """Whether it may make a relation, a routine or a type in *schema*."""
        return self.rest.startswith(tuple(f"{kind} {_listed(schema)} " for kind in _MADE_IN_SCHEMAS))

    @property
    def extension(self) -> str | None:
        """The extension that this entry creates, if it does."""
        return self.rest.removeprefix("EXTENSION - ").strip() if self.rest.startswith("EXTENSION - ") else None

    @property
    def is_subscription(self) -> bool:
        """Whether it would create a subscription, which is never restored."""
        return self.rest.startswith("SUBSCRIPTION ")


def still_to_create(entries: Collection[Entry], left_over: Mapping[str, Any], roles: Collection[str]) -> list[Entry]:
    """What of *entries* is to be created where ``clearing.LEFT_OVER`` has found *left_over*; no subscription."""
    subjects = [
        f"{kind} - {name}"
        for kind in ("SCHEMA", "EXTENSION", "EVENT TRIGGER")
        for name in left_over[kind] or ()
        if name != "public"
    ]
    subjects.extend(f"COMMENT - EXTENSION {name}" for name in left_over["EXTENSION"] or ())
    subjects.extend(f"COMMENT - EVENT TRIGGER {name}" for name in left_over["EVENT TRIGGER"])
    if not left_over["public is mine"]:
        subjects.extend(["SCHEMA - public", "COMMENT - SCHEMA public", "ACL - SCHEMA public"])
    return [
        entry
        for entry in entries
        if not entry.is_subscription and not any(entry.is_about(subject, roles) for subject in subjects)
    ]


def _listed(name: str) -> str:
    """A name as the list shows it: on one line."""
    return name.replace("\r", " ").replace("\n", " ")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an archive says of itself."""

    clients: Clients
    """Programs that can read it."""
    entries: list[Entry]


def read_contents(alias: str, source: Source, processes: Processes, client_directory: str | None) -> Contents:
    """Read the beginning of *source* for its header and table of contents; proves nothing about the rest."""
    with contextlib.ExitStack() as stack:
        chunks = source.open()
        if hasattr(chunks, "close"):
            stack.callback(chunks.close)
        head = _first(chunks, 4096)
        writer = _writer(head)
        if writer is None:
            raise SnapshotIntegrityError(
                f"{source.filename} is no archive of pg_dump in custom format; {alias!r} can't be restored from it."
            )
        clients = choose(
            processes,
            client_directory,
            ["pg_restore", "psql"],
            at_least=major_of(writer),
            because=f"{source.filename} for the alias {alias!r} was written by pg_dump {writer}",
        )
        listing = _list(processes, clients, itertools.chain([head], chunks), f"{source.filename} for {alias!r}")
        matches = (_ENTRY.fullmatch(line) for line in listing.split("\n"))
        return Contents(
            clients=clients,
            entries=[Entry(number=match["id"], rest=match["rest"]) for match in matches if match],
        )


def _first(chunks: Iterator[bytes], size: int) -> bytes:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return head


def _writer(head: bytes) -> str | None:
    """The version of the ``pg_dump`` that wrote this header, or ``None`` if it is none."""
    if head[:5] != b"PGDMP" or len(head) < 11 or head[10] != 1:
        return None
    minor_version, size_of_int = head[6], head[8]
    # Before 1.15 the compression is a number, from then on one byte that names the algorithm.
    position = 11 + (1 if minor_version >= 15 else 1 + size_of_int) + _HEADER_NUMBERS * (1 + size_of_int)
    strings: list[str] = []
    for _ in range(3):
        length = int.from_bytes(head[position + 1 : position + 1 + size_of_int], "little")
        position += 1 + size_of_int
        strings.append(head[position : position + length].decode(errors="replace"))
        position += length
    return strings[2] if re.match(r"\d", strings[2]) else None


def _list(processes: Processes, clients: Clients, chunks: Iterable[bytes], what: str) -> str:
    argv: list[str | Path] = [clients.program("pg_restore"), "--list"]
    with processes.start(argv, stdin=subprocess.PIPE, env={"PG_COLOR": "never"}) as tool:
        with Feeder(tool, chunks) as feeder:
            listing = b"".join(tool.chunks())
            status = tool.wait()
            feeder.finish()
        if status != 0:
            raise SnapshotConnectorError(f"The table of contents of {what} can't be read: {tool.explain()}")
        return listing.decode(errors="replace")  # the names of older archives may be in another encoding
