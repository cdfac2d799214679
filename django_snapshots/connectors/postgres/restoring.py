"""Restores one database inside a single transaction of one ``psql``: nobody sees anything of it before its COMMIT.

Who can die when, and what then holds: as ``transaction`` says. The safety copy is taken after writers are shut out and
before anything is changed. No lock keeps anybody from making a table or a large object meanwhile: what is there is
noted before the tables are locked, and what came after that is in no copy, so it is never removed. It ends the restore.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from django_snapshots.connectors.postgres import catalog, clearing, counts
from django_snapshots.connectors.postgres.access import access, connected
from django_snapshots.connectors.postgres.archive import Contents, Entry, still_to_create
from django_snapshots.connectors.postgres.transaction import InTransaction
from django_snapshots.connectors.recorded import by_name, exact_row_counts
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.transfer import RestoreRequest, Source

_SHOWN = 10


def _others(row: str) -> str:
    """True for a *row* that is seen here and was not written by this transaction.

    A subtransaction of it, such as an event trigger begins that catches errors, has a later number of its own, and is
    in progress; whoever else has written a row that is seen has committed it.
    """
    number = f"(pg_current_xact_id()::text::bigint - age({row}.xmin))::text::xid8"
    return f"CASE WHEN age({row}.xmin) > 0 THEN true ELSE pg_xact_status({number}) IS DISTINCT FROM 'in progress' END"


class Restoring(InTransaction):
    """One restore; ``Prepared`` once ``build`` has returned."""

    def __init__(self, alias: str, source: Source, request: RestoreRequest, contents: Contents, *, owner: bool) -> None:
        super().__init__(alias, source, request, contents)
        self._owner = owner if request.owner is None else request.owner
        self._hint = " Owners and grants are left out by PostgresConnector(owner=False)." if self._owner else ""

    def build(self) -> None:
        """Put the archive's content in place of the database's, without committing it."""
        contents = self._contents
        with connected(self._alias) as connection:
            roles = [name for (name,) in catalog.rows(connection, "SELECT rolname FROM pg_roles")]
            tables = catalog.find_tables(connection, self._request.preserve_tables)
            kept = {**tables, **catalog.owned_sequences(connection, tables)}
            self._report_extensions(catalog.extensions(connection))
            settings = {name for (name,) in catalog.rows(connection, "SELECT name FROM pg_settings")}
            reached = access(connection, self._request.label)
        try:
            self._begin(reached)
            self._open_session.write(clearing.tell("kept", kept).encode())
            seen = self._seen()
            # Until the end of the transaction nobody else writes to any table; everybody still reads, pg_dump too.
            self._ask(clearing.LOCK)
            self._request.safety()
            self._require_nothing_since(*seen)
            self._clear(kept)
            wanted = self._wanted(contents.entries, roles)
            self._fill([entry.number for entry in wanted], settings, self._options(reached.role))
        except BaseException:
            self.discard()
            raise

    def check(self) -> None:
        """Compare the rows of every table, as this transaction sees them, with the manifest's."""
        self._require_nothing_of_others()
        wanted = exact_row_counts(self._source.metadata)
        (number,) = self._open_session.ask("SELECT count(*) FROM pg_largeobject_metadata;")
        counts.compare_large_objects(self._alias, self._source.metadata, int(number))
        if wanted is not None:
            rerouted = catalog.decoded("".join(self._open_session.ask(f"{catalog.REROUTED};")) or "null")
            counts.compare(self._alias, wanted, self._count(), rerouted)

    def _seen(self) -> tuple[dict[str, str], set[int]]:
        """The tables that are there, by their number, and the numbers of the large objects."""
        found = catalog.decoded("".join(self._open_session.ask(clearing.SEEN)))
        return found["tables"] or {}, set(found["objects"] or ())

    def _require_nothing_since(self, tables: Mapping[str, str], objects: Collection[int]) -> None:
        """What came since these were seen is in no safety copy; of what comes from now on nothing is removed."""
        now, objects_now = self._seen()
        made = [name for number, name in now.items() if number not in tables]
        made += [f"large object {number}" for number in objects_now.difference(objects)]
        if made:
            raise self._of_others(made, "the safety copy was taken")
        self._open_session.write((clearing.tell("seen", tables) + clearing.tell("objects", objects)).encode())

    def _of_others(self, made: Collection[str], meanwhile: str) -> SnapshotConnectorError:
        return SnapshotConnectorError(
            f"Somebody else has made {', '.join(sorted(made)[:_SHOWN])} in {self._alias!r} while {meanwhile}. "
            "Nothing was changed; begin again."
        )

    def _clear(self, kept: Mapping[int, str]) -> None:
        """Remove what is there; check that no CASCADE took anything that was to stay."""
        session = self._open_session
        before = session.ask(clearing.FINGERPRINT)
        self._ask(f"\\o /dev/null\n{clearing.script()}\n\\o")
        if session.ask(clearing.FINGERPRINT) != before:
            raise SnapshotPreflightError(
                f"{self._alias!r} can't be restored: {', '.join(kept.values()) or 'an extension'} depends on something "
                "that is to be replaced, such as a type, a function or a table. Remove that dependency. "
                "Nothing was changed."
            )

    def _require_nothing_of_others(self) -> None:
        """What others have made since the database was cleared says nothing of the snapshot, and is not to be lost."""
        tables = (
            f"{catalog.COUNTED_TABLES} AND CASE WHEN c.oid = ANY(:'kept'::oid[]) THEN false ELSE {_others('c')} END"
        )
        sql = f"""
            SELECT json_agg(name) FROM (
                SELECT name FROM ({tables}) t
                UNION ALL SELECT 'large object ' || oid FROM pg_largeobject_metadata m WHERE {_others("m")}
            ) made;
        """  # noqa: S608 - made of constants
        if made := catalog.decoded("".join(self._open_session.ask(sql)) or "null"):
            raise self._of_others(made, "it was restored")

    def _report_extensions(self, installed: Mapping[str, str]) -> None:
        for name, version in by_name(self._source.metadata, "extensions", str).items():
            if installed.get(name, version) != version:
                self._request.report(
                    f"The extension {name} stays at version {installed[name]} in {self._alias!r}; "
                    f"it was {version} in the snapshot."
                )

    def _wanted(self, entries: Collection[Entry], roles: Collection[str]) -> list[Entry]:
        """What the archive is to create: not what was left where it is."""
        (line,) = self._open_session.ask(clearing.LEFT_OVER)
        if any(entry.is_subscription for entry in entries):
            self._request.report(f"Subscriptions are never restored; {self._alias!r} has kept its own.")
        return still_to_create(entries, json.loads(line), roles)

    def _options(self, role: str | None) -> list[str]:
        return [*([] if self._owner else ["--no-owner", "--no-acl"]), *([f"--role={role}"] if role else [])]

    def _count(self) -> Mapping[str, int]:
        sql = f"""
            SELECT format('SELECT %L || count(*) FROM ONLY %s', to_json(name)::text || ' ', name)
            FROM ({catalog.COUNTED_TABLES}) t WHERE oid <> ALL(:'kept'::oid[]) \\gexec
        """  # noqa: S608 - made of constants
        return catalog.counted(self._open_session.answers(sql))
