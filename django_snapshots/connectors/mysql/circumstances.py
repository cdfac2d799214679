"""What of a server, its host and its clients stands in the way of a restore or will surprise: room, names, limits, and
who is at work in the tables."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from django.apps import apps
from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.client import Client, find_client
from django_snapshots.connectors.mysql.record import text
from django_snapshots.connectors.mysql.rights import may_create_functions, read_rights
from django_snapshots.connectors.mysql.server import Server, names, rows, value
from django_snapshots.connectors.recorded import row_counts
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Processes
from django_snapshots.replaced import Finding
from django_snapshots.sizes import human_duration, human_size
from django_snapshots.transfer import RestoreRequest, Source

_SHOWN = 5
_LONG_SECONDS = 5
"""A transaction that is older is worth a word: the switch waits for it."""


def facts(connection: BaseDatabaseWrapper) -> Mapping[str, Any]:
    """What a dump records of its database, for whoever looks at it before a restore."""
    return {
        "lower_case_table_names": int(value(connection, "SELECT @@lower_case_table_names")),
        "data_size": _size_of(connection, str(value(connection, "SELECT DATABASE()"))),
        "has_functions": bool(
            value(
                connection,
                "SELECT (SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = DATABASE()) + "
                "(SELECT COUNT(*) FROM information_schema.routines WHERE routine_schema = DATABASE())",
            )
        ),
    }


def _size_of(connection: BaseDatabaseWrapper, schema: str, tables: Collection[str] = ()) -> int:
    """Bytes that the tables of *schema*, or these of them, take with their indexes, about."""
    found = rows(
        connection,
        "SELECT table_name, COALESCE(data_length, 0) + COALESCE(index_length, 0) "  # noqa: S608 - hex
        f"FROM information_schema.tables WHERE table_schema = {text(schema)} AND table_type <> 'VIEW'",
    )
    return sum(int(size) for name, size in found if not tables or name in tables)


def room(
    connection: BaseDatabaseWrapper, server: Server, source: Source, tables: Collection[str] = ()
) -> Iterator[Finding]:
    """Whether what is loaded beside the target has room where the server keeps its data."""
    needed = _needed(connection, server, source, tables)
    if not needed:
        return
    what = f"the rows of {len(tables)} tables twice" if tables else f"the snapshot beside {server.database}"
    for_it = f"A restore loads {what}, and keeps what it replaces: it needs about {human_size(needed)} more on the disk"
    directory = str(value(connection, "SELECT @@datadir"))
    free = _free(connection, directory)
    if free is None:
        yield _warns(
            f"{for_it} of the server. How much is free there can't be seen from here: look at the disk of {directory}, "
            "or have an administrator run: INSTALL SONAME 'disks'; and GRANT FILE ON *.* to the account."
        )
    elif free < needed:
        yield _stops(f"{for_it} of {directory}, and {human_size(free)} are free: make room there.")


def _needed(connection: BaseDatabaseWrapper, server: Server, source: Source, tables: Collection[str]) -> int:
    if tables:
        return 2 * _size_of(connection, server.database, tables)
    sizes = [source.metadata.get(name) for name in ("data_size", "content_size")]
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    if not known:
        return 0
    logged = value(connection, "SELECT @@log_bin")
    # The binary log takes every statement once more.
    return known[0] + (known[-1] if logged else 0)


def _free(connection: BaseDatabaseWrapper, directory: str) -> int | None:
    """Bytes that are free where the server keeps its data; ``None`` if neither it nor its host tells."""
    with contextlib.suppress(DatabaseError):
        disks = rows(connection, "SELECT path, available FROM information_schema.disks")
        mounted = [(len(str(path)), int(left)) for path, left in disks if _is_below(directory, str(path))]
        if mounted:
            return max(mounted)[1] * 1024
    if value(connection, "SELECT @@hostname") == socket.gethostname():
        with contextlib.suppress(OSError):
            return shutil.disk_usage(directory).free
    return None


def _is_below(directory: str, path: str) -> bool:
    return Path(directory).is_relative_to(path)


def letters(connection: BaseDatabaseWrapper, source: Source, request: RestoreRequest) -> Iterator[Finding]:
    """Whether the server tells names apart by case as the snapshot's did."""
    then = source.metadata.get("lower_case_table_names")
    now = int(value(connection, "SELECT @@lower_case_table_names"))
    if not isinstance(then, int) or then == now:
        return
    stored = list(row_counts(source.metadata))
    if now:
        if merged := _merged(stored):
            yield _stops(
                f"The snapshot has tables whose names differ only in case ({', '.join(merged[:_SHOWN])}), and this "
                f"server takes them for one (lower_case_table_names = {now}): restore it on a server where that is 0."
            )
        elif then == 0:
            yield _warns(
                f"lower_case_table_names is {now} here and was 0: names of tables are no longer told apart by case, "
                "and may come back in lower case."
            )
    elif lost := sorted(_other_case(stored, request.preserve_tables)):
        yield _stops(
            f"The snapshot has these tables in another case than the models ({', '.join(lost[:_SHOWN])}), which did "
            f"not matter where it was made (lower_case_table_names = {then}); here they would not be found: restore it "
            "on a server where that is not 0."
        )
    else:
        yield _warns(
            f"lower_case_table_names is 0 here and was {then}: names of tables are told apart by case now. What names "
            "one in another case, a view or a statement of the project, does not find it."
        )


def _merged(stored: Sequence[str]) -> list[str]:
    folded = [name.lower() for name in stored]
    return sorted(name for name in stored if folded.count(name.lower()) > 1)


def _other_case(stored: Sequence[str], journal: Collection[str]) -> Iterator[str]:
    there = {name.lower(): name for name in stored}
    wanted = {str(model._meta.db_table) for model in apps.get_models(include_auto_created=True)} | {*journal}
    for name in wanted:
        if there.get(name.lower(), name) != name:
            yield f"{there[name.lower()]} for {name}"


def limits(connection: BaseDatabaseWrapper, server: Server, source: Source) -> Iterator[Finding]:
    """What the server would not take of the dump."""
    longest = source.metadata.get("longest_line")
    if isinstance(longest, int) and longest > server.max_allowed_packet:
        yield _stops(
            f"The dump has a statement of {longest} bytes, and the server takes {server.max_allowed_packet}: raise its "
            f"max_allowed_packet; run: SET GLOBAL max_allowed_packet = {_power(longest)};"
        )
    rights = read_rights(connection, server)
    has_functions = source.metadata.get("has_functions")
    if has_functions is False or may_create_functions(connection, rights):
        return
    said = f"the server's binary log does not let {rights.account} create them; run: "
    run = "SET GLOBAL log_bin_trust_function_creators = 1;"
    if has_functions:
        yield _stops(f"The dump has functions or triggers, and {said}{run}")
    else:
        yield _warns(f"If the dump has functions or triggers, {said}{run}")


def _power(size: int) -> int:
    """The next power of two above *size*; the server takes 1 GiB at most."""
    return min(1 << size.bit_length(), 1 << 30)


def clients(server: Server, directory: str | None, source: Source, processes: Processes) -> Iterator[Finding]:
    """Whether the client that will load the dump is there, and fits it."""
    try:
        client = find_client(server, directory, processes)
    except SnapshotConnectorError as error:
        yield _stops(str(error))
        return
    if client.oracle == server.mariadb:
        yield _warns(
            f"{client.path} was made for the other of MySQL and MariaDB, and the server is {server.title}; it may "
            "stumble over what only the server's own client knows. Install that, or name its directory with the "
            "connector's client_directory."
        )
    elif (then := _number(source.metadata.get("client_version"))) and _is_older(client, then):
        yield _warns(
            f"{client.path} is older ({_words(client.number)}) than the tool that made the dump ({_words(then)}). If "
            "the load fails, install a newer client, or name its directory with the connector's client_directory."
        )


def _number(said: object) -> tuple[int, ...]:
    """The version of the tool that made a dump; of a MariaDB tool that names two numbers, the distribution's."""
    found = re.search(r"(?:from |Distrib )(\d+)\.(\d+)", str(said)) or re.search(r"Ver (\d+)\.(\d+)", str(said))
    return (int(found[1]), int(found[2])) if found else ()


def _is_older(client: Client, then: tuple[int, ...]) -> bool:
    return client.number[: len(then)] < then


def _words(number: Sequence[int]) -> str:
    return ".".join(map(str, number))


def work(connection: BaseDatabaseWrapper, server: Server) -> Iterator[Finding]:
    """Who holds the tables of the target: the switch waits for them, and fails if they don't end in time."""
    found = [*_holders(connection, server.database)] or [*_transactions(connection, server.database)]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield _warns(
            f"The switch waits for sessions that hold tables of {server.database}, a bounded time, and everybody else "
            f"waits behind it: {'; '.join(found[:_SHOWN])}{more}. Let them end, or KILL them."
        )


def _holders(connection: BaseDatabaseWrapper, database: str) -> Iterator[str]:
    """The sessions with metadata locks on tables of *database*, where the server tells."""
    for view, thread, schema, name in (
        ("information_schema.metadata_lock_info", "thread_id", "table_schema", "table_name"),
        (
            "performance_schema.metadata_locks l JOIN performance_schema.threads t ON t.thread_id = owner_thread_id",
            "processlist_id", "object_schema", "object_name",
        ),
    ):  # fmt: skip
        with contextlib.suppress(DatabaseError):
            found = rows(
                connection,
                f"SELECT {thread}, GROUP_CONCAT(DISTINCT {name} ORDER BY {name} SEPARATOR ', ') FROM {view} "  # noqa: S608
                f"WHERE {schema} = {text(database)} AND {name} <> '' AND {thread} <> CONNECTION_ID() GROUP BY 1",
            )
            for number, tables in found:
                yield f"session {number} ({_who(connection, int(number))}) holds {tables}"
            if found:
                return


def _transactions(connection: BaseDatabaseWrapper, database: str) -> Iterator[str]:
    """The sessions in *database* whose transaction is open for long, where the account may see them."""
    with contextlib.suppress(DatabaseError):
        found = rows(
            connection,
            "SELECT p.id, TIMESTAMPDIFF(SECOND, trx_started, NOW()) FROM information_schema.innodb_trx "  # noqa: S608
            "JOIN information_schema.processlist p ON p.id = trx_mysql_thread_id "
            f"WHERE p.db = {text(database)} AND p.id <> CONNECTION_ID() ORDER BY trx_started",
        )
        for number, age in found:
            if age >= _LONG_SECONDS:
                who = _who(connection, int(number))
                yield f"session {number} ({who}) has a transaction open for {human_duration(age)}"


def _who(connection: BaseDatabaseWrapper, number: int) -> str:
    """Whose session it is; never what it runs, which may hold anything."""
    with contextlib.suppress(DatabaseError):
        found = names(
            connection,
            f"SELECT CONCAT(user, '@', host) FROM information_schema.processlist WHERE id = {number}",  # noqa: S608
        )
        return found[0] if found else "not to be seen by this account"
    return "not to be seen by this account"


def _stops(said: str) -> Finding:
    return Finding(text=said, stops=True)


def _warns(said: str) -> Finding:
    return Finding(text=said, stops=False)
