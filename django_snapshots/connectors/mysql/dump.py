"""Dumps one database: what is asked of the dump tool, and the proof that it gave all of it."""

from __future__ import annotations

import itertools
import re
import select
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.left_out import require_no_pointers, require_tables
from django_snapshots.connectors.mysql.client import Client
from django_snapshots.connectors.mysql.moment import Moment
from django_snapshots.connectors.mysql.scan import END, EVENTS, LineLength, without_sandbox
from django_snapshots.connectors.mysql.server import Server, Table, names, rows, value
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError
from django_snapshots.processes import Processes, Tool

_LOCKED_SECONDS = 3.0
"""How long the tables stay locked at most while the dump tool starts."""
_TAIL = 256
_CONTENT = (b"\n-- Table structure", b"\n-- Temporary ", b"\n-- Sequence structure", b"\n-- Dumping ")
"""What the dump tool writes only after its transaction has begun; its header comes before."""
_CREATES = re.compile(rb"\nCREATE TABLE (?:IF NOT EXISTS )?`((?:[^`\n]|``)+)` ")
_MAKES_VIEW = re.compile(rb"\n/\*!50001 VIEW `((?:[^`\n]|``)+)` AS")
_REACH = 1024
"""More bytes than the beginning of such a line has: a name has at most 64 characters."""
_LEAVES_OUT = (10, 11)
"""The first MariaDB whose dump tool is known to have ``--ignore-table-data``."""
_HISTORY = (10, 11)
"""The first MariaDB whose dump tool and server both know how to carry the history of system-versioned tables."""


@dataclass(frozen=True, kw_only=True)
class DumpPlan:
    """What is dumped, by what."""

    db_alias: str
    server: Server
    tool: Client
    option_file: Path
    secrets: Sequence[str]
    tables: Sequence[Table]
    exclude_tables: frozenset[str]
    exclude_data: frozenset[str]
    history: bool
    events: bool
    definers: Sequence[str]
    views: Sequence[str]
    facts: Mapping[str, Any]
    """What the dump records of its database besides."""
    warnings: Sequence[str]

    def content_command(self) -> list[str | Path]:
        """Everything but the events."""
        options = ["--triggers", "--routines", "--skip-events", *(["--dump-history"] if self.history else [])]
        ignored = [f"--ignore-table={self.server.database}.{name}" for name in sorted(self.exclude_tables)]
        emptied = [f"--ignore-table-data={self.server.database}.{name}" for name in sorted(self.exclude_data)]
        return [*self._command(), *options, *ignored, *emptied, "--", self.server.database]

    def events_command(self) -> list[str | Path]:
        """The events alone."""
        options = ["--events", "--no-data", "--no-create-info", "--skip-triggers", "--skip-routines"]
        return [*self._command(), *options, "--", self.server.database]

    def _command(self) -> list[str | Path]:
        return [
            self.tool.path,
            f"--defaults-file={self.option_file}",
            "--single-transaction",
            "--quick",
            "--hex-blob",
            "--tz-utc",
            "--default-character-set=utf8mb4",
            "--no-tablespaces",
            "--max-allowed-packet=1G",
            "--skip-dump-date",
            # A table whose default is the next number of a sequence can't be loaded under LOCK TABLES.
            "--skip-add-locks",
            *(["--column-statistics=0", "--set-gtid-purged=OFF"] if self.tool.oracle else []),
        ]


def history_of(connection: BaseDatabaseWrapper, server: Server, tool: Client, tables: Sequence[Table]) -> bool:
    """Whether the history of system-versioned tables can be dumped, and there are any."""
    if not any(table.versioned for table in tables):
        return False
    by_transaction = value(
        connection,
        "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE() "
        "AND generation_expression = 'ROW START' AND data_type = 'bigint'",
    )
    return not by_transaction and server.number >= _HISTORY and tool.number[:2] >= _HISTORY and not tool.oracle


def warnings_of(
    connection: BaseDatabaseWrapper, server: Server, tool: Client, tables: Sequence[Table], history: bool
) -> list[str]:
    """What the dump can't carry faithfully, in sentences."""
    return [*_table_warnings(tables, history), *_column_warnings(connection), *_tool_warnings(server, tool)]


def require_left_out(
    connection: BaseDatabaseWrapper, alias: str, tool: Client, tables: Sequence[Table], left_out: frozenset[str]
) -> None:
    """Refuse to leave out the rows of *left_out* where that can't be, or could not be restored."""
    if not left_out:
        return
    if tool.oracle or tool.number[:2] < _LEAVES_OUT:
        raise SnapshotConfigurationError(
            f'SNAPSHOTS["EXCLUDE_DATA"]["{alias}"] is set, and {tool.version} can\'t leave rows out. It takes the '
            "mariadb-dump of MariaDB 10.11 or newer."
        )
    require_tables(alias, left_out, [table.name for table in tables])
    keys = rows(
        connection,
        "SELECT table_name, constraint_name, referenced_table_name FROM information_schema.referential_constraints "
        "WHERE constraint_schema = DATABASE()",
    )
    require_no_pointers(
        alias, [f"{key} of {table}" for table, key, other in keys if other in left_out and table not in left_out]
    )


def event_names(connection: BaseDatabaseWrapper) -> list[str]:
    """The events of the database."""
    return names(connection, "SELECT event_name FROM information_schema.events WHERE event_schema = DATABASE()")


def begin_dump(content: Tool, moment: Moment) -> bytes:
    """End the lock of *moment* once the running tool's transaction is open; return what was read of it by then."""
    head, begun = _until_content(content)
    moment.release(tool_has_begun=begun)
    moment.marks.find(content)
    return head


def dump_chunks(
    plan: DumpPlan, processes: Processes, content: Tool, head: bytes, moment: Moment
) -> Generator[bytes, None, None]:
    """The dump: everything but the events, then the events. Ends only if both are whole.

    Events come last, behind a line that a restore knows, so that none fires into a database that is half loaded.
    *content* runs already, and *head* was read of it.
    """
    listing = _Listing()
    for chunk in _whole(plan, content, itertools.chain([head], content.chunks())):
        moment.marks.look_again()
        listing.feed(chunk)
        yield chunk
    moment.longest_line = listing.longest_line
    for what, wanted, there in (
        ("tables", [table.name for table in plan.tables], listing.tables),
        ("views", plan.views, listing.views),
    ):
        _require_all(plan, content, what, sorted(set(wanted) - there))
    if plan.events:
        yield EVENTS
        with processes.start(plan.events_command(), secrets=plan.secrets) as tool:
            yield from _whole(plan, tool, without_sandbox(tool.chunks()))


def _require_all(plan: DumpPlan, content: Tool, what: str, missing: Sequence[str]) -> None:
    if missing:
        raise SnapshotConnectorError(
            f"The dump of {plan.db_alias!r} lacks the {what} {', '.join(missing)}, which the server has, though "
            f"{content.explain()}. Were they dropped or renamed while it began? Else look at {plan.tool.path}."
        )


def _until_content(tool: Tool) -> tuple[bytes, bool]:
    """Read until the tool's transaction is known to be open, or ended, or a few seconds are over.

    Returns what was read, and whether the transaction is known to have begun.
    """
    head = b""
    deadline = time.monotonic() + _LOCKED_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([tool.stdout], [], [], left)
        if not ready:
            break
        chunk = next(tool.chunks(), b"")
        head += chunk
        if not chunk or any(mark in head for mark in _CONTENT):
            return head, True
    return head, False


def _whole(plan: DumpPlan, tool: Tool, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass *chunks* on; raise at their end unless the tool succeeded and wrote its last line."""
    tail = b""
    for chunk in chunks:
        tail = (tail + chunk[-_TAIL:])[-_TAIL:]
        yield chunk
    if tool.wait() != 0:
        # Seen with mariadb-dump 10.11: status 2, and not a word, when the server ends its session or is restarted.
        hint = (
            "" if tool.stderr else ". It may have lost its connection: was the server restarted, or its session ended?"
        )
        raise SnapshotConnectorError(f"The dump of {plan.db_alias!r} failed: {tool.explain()}{hint}")
    if not tail.rstrip().rsplit(b"\n", 1)[-1].startswith(END):
        how = "is cut off before its last line" if tail else "is empty"
        raise SnapshotConnectorError(f"The dump of {plan.db_alias!r} {how}, though {tool.explain()}")


class _Listing:
    """The tables and views that a dump creates, and its longest line, seen while it streams by: rows have no line's end
    in them, so what stands at the beginning of a line is a statement."""

    def __init__(self) -> None:
        self.tables: set[str] = set()
        self.views: set[str] = set()
        self._length = LineLength()
        self._tail = b"\n"

    @property
    def longest_line(self) -> int:
        """Bytes; lines shorter than one chunk are not measured."""
        return self._length.longest

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._length.feed(chunk)
        seen = self._tail + chunk
        self.tables.update(_table_name(match[1]) for match in _CREATES.finditer(seen))
        self.views.update(_table_name(match[1]) for match in _MAKES_VIEW.finditer(seen))
        self._tail = seen[-_REACH:]


def _table_name(quoted: bytes) -> str:
    return quoted.replace(b"``", b"`").decode(errors="replace")


def _table_warnings(tables: Sequence[Table], history: bool) -> Iterator[str]:
    loose = [table.name for table in tables if not table.transactional]
    if loose:
        yield (
            f"These tables know no transactions, so their rows may be of a later moment than the others': "
            f"{', '.join(loose)}."
        )
    versioned = [table.name for table in tables if table.versioned]
    if versioned and not history:
        yield f"Only the current rows of these system-versioned tables are dumped: {', '.join(versioned)}."


def _column_warnings(connection: BaseDatabaseWrapper) -> Iterator[str]:
    floats = rows(
        connection,
        "SELECT c.table_name, c.column_name FROM information_schema.columns c JOIN information_schema.tables t "
        "ON t.table_schema = c.table_schema AND t.table_name = c.table_name "
        "WHERE c.table_schema = DATABASE() AND c.data_type = 'float' AND t.table_type <> 'VIEW' ORDER BY 1, 2",
    )
    if floats:
        columns = ", ".join(f"{table}.{column}" for table, column in floats)
        yield f"The server prints FLOAT with six digits, so digits beyond are lost in: {columns}."


def _tool_warnings(server: Server, tool: Client) -> Iterator[str]:
    if tool.oracle == server.mariadb:
        yield f"The dump tool was made for the other of MySQL and MariaDB: {tool.version}."
    elif tool.number[:2] < server.number:
        yield f"The dump tool is older than the server {server.version}: {tool.version}."
