"""Dumps one database: ``pg_dump`` in custom format, uncompressed, in a moment that we hold and count in ourselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import facts
from django_snapshots.connectors.left_out import require_no_pointers, require_tables
from django_snapshots.connectors.postgres import catalog, properties
from django_snapshots.connectors.postgres.access import Access, access, connected, explained, reading
from django_snapshots.connectors.postgres.clients import Clients, choose, major_of
from django_snapshots.connectors.postgres.toc import MAGIC, Contents
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConfigurationError, SnapshotConnectorError
from django_snapshots.processes import Tool
from django_snapshots.transfer import Dump, DumpRequest

_UNREAD = (
    "The archive's form is newer than this django-snapshots, or its table of contents very large, so it was not looked "
    "through for its end and for every table of the server."
)
_ELSEWHERE = "The rows of foreign tables lie on another server and are not in the dump"
_SUBSCRIBED = "Subscriptions are never restored, because they would begin to write at once; make them again by hand"
_UNSEEN = (
    "This role may not see the options of user mappings, passwords for one, so the dump has none; give them again by "
    "hand, or dump as a superuser"
)
_GRANTED = 100
"""So many large objects are named."""
_AT_ONCE = 20


@contextlib.contextmanager
def open_dump(
    alias: str, request: DumpRequest, *, client_directory: str | None, dump_alias: str | None
) -> Iterator[Dump]:
    """Fix the moment in a transaction of our own, check what stands in the way, and start ``pg_dump`` in it."""
    through = dump_alias or alias
    with reading(through, request.label) as connection:
        with explained(through):
            server = catalog.server(connection)
            if dump_alias:
                _require_same_database(alias, dump_alias, server)
            clients = choose(
                request.processes,
                client_directory,
                ["pg_dump"],
                at_least=major_of(server.version),
                because=f"The alias {alias!r} is on PostgreSQL {server.version}",
            )
            excluded = _excluded(connection, alias, request.exclude_tables)
            _require_rights(connection, alias, excluded)
            emptied = _emptied(connection, alias, request.exclude_data, excluded)
            ((snapshot,),) = catalog.rows(connection, "SELECT pg_export_snapshot()")
            moment = catalog.moment(connection)
            reached = access(connection, request.label)
        argv = _arguments(clients, reached, snapshot, excluded, emptied, server.encoding)
        with request.processes.start(argv, env=reached.env, secrets=reached.secrets) as tool:
            content = _Content(alias, request, tool, connection, excluded, emptied)
            yield Dump(
                suffix="pgdump",
                started_at=moment,
                chunks=content.chunks(),
                metadata=lambda: content.metadata(server, clients),
            )


class _Content:
    """The stream of one running ``pg_dump``, and what is known once it has ended well."""

    def __init__(
        self,
        alias: str,
        request: DumpRequest,
        tool: Tool,
        connection: BaseDatabaseWrapper,
        excluded: Mapping[int, str],
        emptied: Mapping[int, str],
    ) -> None:
        self._alias = alias
        self._request = request
        self._tool = tool
        self._connection = connection
        self._excluded = excluded
        self._emptied = emptied
        self._complete = False
        self._contents = Contents()

    def chunks(self) -> Iterator[bytes]:
        """What ``pg_dump`` writes; ends only after it exited with 0 and wrote an archive to its end."""
        beginning = b""
        for chunk in self._tool.chunks():
            beginning = (beginning + chunk)[: len(MAGIC)] if len(beginning) < len(MAGIC) else beginning
            self._contents.feed(chunk)
            yield chunk
        status = self._tool.wait()
        if self._request.processes.ended:
            raise SnapshotCancelled(f"The dump of {self._alias!r} was ended before it was complete.")
        if status != 0:
            raise SnapshotConnectorError(f"The dump of {self._alias!r} failed: {self._tool.explain()}")
        if beginning != MAGIC:
            raise SnapshotConnectorError(
                f"The dump of {self._alias!r} is no dump: {self._tool.explain()}, and what it wrote does not begin "
                "as an archive of pg_dump does."
            )
        self._contents.end()
        if self._contents.is_cut_off:
            raise SnapshotConnectorError(
                f"The dump of {self._alias!r} is cut off: {self._tool.explain()}, but what arrived is not a whole "
                f"archive. Is {self._tool.name} the program of PostgreSQL itself, and does all that it writes arrive?"
            )
        self._require_every_table()
        self._complete = True

    def _require_every_table(self) -> None:
        """Whether the archive has the rows of every table that the server lists in the very moment of the dump."""
        if self._contents.items is None:
            return  # a form that is newer than this code; the metadata say so
        held = {item.oid for item in self._contents.items if item.kind == "TABLE DATA"}
        with explained(self._alias):
            there = catalog.counted_tables(self._connection, [*self._excluded, *self._emptied])
        if missing := sorted(name for oid, name in there.items() if oid not in held):
            raise SnapshotConnectorError(
                f"The dump of {self._alias!r} lacks the rows of {', '.join(missing)}, which the server has, though "
                f"{self._tool.explain()}. Is {self._tool.name} the program of PostgreSQL itself?"
            )

    def _warnings(self) -> list[str]:
        with explained(self._alias):
            found = {
                _ELSEWHERE: catalog.foreign_tables(self._connection),
                _SUBSCRIBED: catalog.subscriptions(self._connection),
                _UNSEEN: catalog.hidden_user_mappings(self._connection),
            }
        return [
            *([_UNREAD] if self._contents.items is None else []),
            *(f"{what}: {', '.join(names)}." for what, names in found.items() if names),
        ]

    def metadata(self, server: catalog.Server, clients: Clients) -> Mapping[str, Any]:
        """Counts and the rest, seen in the very moment that was dumped."""
        if not self._complete:
            raise SnapshotConnectorError(f"The dump of {self._alias!r} was not read to its end.")
        warnings = self._warnings()
        with explained(self._alias):
            return {
                **({"warnings": warnings} if warnings else {}),
                "engine": "postgresql",
                "server_version": server.version,
                "client_version": clients.version,
                "encoding": server.encoding,
                "locale": properties.locale_of(self._connection),
                "extensions": catalog.extensions(self._connection),
                "row_counts": {
                    **catalog.row_counts(self._connection, [*self._excluded, *self._emptied]),
                    **dict.fromkeys(self._emptied.values(), 0),
                },
                "row_counts_exact": True,
                "large_objects": catalog.large_objects(self._connection),
                "roles": catalog.roles(self._connection, self._excluded),
                "forced_policies": catalog.forced_policies(self._connection, self._excluded),
                "migrations": facts.applied_migrations(self._connection),
            }


def _arguments(
    clients: Clients,
    reached: Access,
    snapshot: str,
    excluded: Mapping[int, str],
    emptied: Mapping[int, str],
    encoding: str,
) -> list[str]:
    role = [f"--role={reached.role}"] if reached.role else []
    # What reads the archive's names takes them for UTF-8. Where the server knows no encoding it can't convert.
    converted = ["--encoding=UTF8"] if encoding != "SQL_ASCII" else []
    return [
        str(clients.program("pg_dump")),
        "--format=custom",
        "--compress=0",
        "--no-password",
        f"--snapshot={snapshot}",
        *role,
        *converted,
        *(f"--exclude-table={catalog.pattern(name)}" for name in excluded.values()),
        *(f"--exclude-table-data={catalog.pattern(name)}" for name in emptied.values()),
        f"--dbname={reached.conninfo}",
    ]


def _excluded(connection: BaseDatabaseWrapper, alias: str, names: frozenset[str]) -> dict[int, str]:
    """The relations to leave out: the tables of these names with the sequences that belong to them."""
    tables = catalog.find_tables(connection, names)
    if dependents := catalog.dependents(connection, tables):
        raise SnapshotConnectorError(
            f"{alias!r} can't be dumped so that it can be restored: the tables of django_snapshots are left out of a "
            f"dump, but there depends on them: {', '.join(dependents)}. Drop what depends on them."
        )
    return {**tables, **catalog.owned_sequences(connection, tables)}


def _emptied(
    connection: BaseDatabaseWrapper, alias: str, names: frozenset[str], excluded: Mapping[int, str]
) -> dict[int, str]:
    """The tables whose rows are left out, by their oid, as they are counted."""
    if not names:
        return {}
    counted = catalog.counted_tables(connection, excluded)
    found = {oid: counted[oid] for oid in catalog.find_tables(connection, names) if oid in counted}
    require_tables(alias, names, [catalog.split_name(name)[-1] for name in found.values()])
    require_no_pointers(alias, catalog.pointers(connection, found))
    return found


def _require_rights(connection: BaseDatabaseWrapper, alias: str, excluded: Mapping[int, str]) -> None:
    """Everything that the role may not read, at once, before anything is written."""
    ((role,),) = catalog.rows(connection, "SELECT quote_ident(current_user)")
    problems: list[str] = []
    if hidden := catalog.hidden_by_policies(connection, excluded):
        problems.append(
            f"Row-level security hides rows of {', '.join(hidden)} in {alias!r} from the role {role}; a dump would "
            f"lack them. Dump as the owner of these tables, or let a superuser ALTER ROLE {role} BYPASSRLS."
        )
    unreadable = catalog.unreadable(connection, excluded)
    grants = [f"GRANT {'USAGE' if item.startswith('SCHEMA') else 'SELECT'} ON {item}" for item in unreadable]
    objects = catalog.unreadable_large_objects(connection)
    if grants := [*grants, *_large_objects(objects)]:
        problems.append(
            f"The role {role} may not read all of {alias!r}. Let the owners run: "
            + "; ".join(f"{grant} TO {role}" for grant in grants)
            + (f"; and the same for {len(objects) - _GRANTED} more large objects" if len(objects) > _GRANTED else "")
        )
    if problems:
        raise SnapshotConnectorError(" ".join(problems))


def _large_objects(numbers: Sequence[int]) -> Iterator[str]:
    """What has to be granted, some in one statement: there may be millions."""
    for start in range(0, min(len(numbers), _GRANTED), _AT_ONCE):
        yield f"GRANT SELECT ON LARGE OBJECT {', '.join(map(str, numbers[start : start + _AT_ONCE]))}"


def _require_same_database(alias: str, dump_alias: str, server: catalog.Server) -> None:
    with connected(alias) as connection:
        other = catalog.server(connection)
    if other.identity != server.identity:
        raise SnapshotConfigurationError(
            f"dump_alias {dump_alias!r} leads to the database {server.database!r} of another server or name than "
            f"{alias!r}, which is {other.database!r}. Point both at the same database."
        )
