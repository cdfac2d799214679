"""Restores the rows of single tables inside one transaction; everything else in the database stays as it is.

Who can die when, and what then holds: as ``transaction`` says, until the COMMIT everything is as it was, and what
became of a COMMIT is asked of the server. Before anything changes, writers of the tables, and of rows that point at
them, are shut out, and a safety copy of the whole database is taken; what comes after it in other tables, an undo
leaves there.

Nothing reaches another table. The rows are deleted, not truncated: whoever reads goes on with the old ones until the
COMMIT, and nothing cascades, because every foreign key that would act on a delete is taken away for the time, and so
is one that would look before all rows are there; the others wait until then. No trigger and no rule acts. At the end
each foreign key of the tables and on them is counted by, and what points at nothing fails the restore by name; then
the server looks itself, and every key, trigger and rule is what it was. Sequences only go forward, inside of the
transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from django_snapshots.connectors import single_tables
from django_snapshots.connectors.postgres import catalog, counts
from django_snapshots.connectors.postgres.access import access, connected
from django_snapshots.connectors.postgres.catalog import split_name
from django_snapshots.connectors.postgres.parts import Key, Parts
from django_snapshots.connectors.postgres.quoting import literal
from django_snapshots.connectors.postgres.tables_preflight import Stored, TablesSurvey, stops
from django_snapshots.connectors.postgres.transaction import InTransaction
from django_snapshots.connectors.recorded import exact_row_counts
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.transfer import RestoreRequest, Source


class TablesRestoring(InTransaction):
    """One restore; ``Prepared`` once ``build`` has returned."""

    def __init__(self, alias: str, source: Source, request: RestoreRequest, survey: TablesSurvey) -> None:
        # A survey that could not read or find them has refused.
        assert survey.contents is not None and survey.parts is not None and survey.stored is not None  # noqa: S101
        super().__init__(alias, source, request, survey.contents)
        self._parts: Parts = survey.parts
        self._stored: Mapping[str, Stored] = survey.stored
        self._dangling: dict[int, int] = {}
        """How many rows pointed at nothing already, by the keys that don't hold."""

    def build(self) -> None:
        """Put the archive's rows in place of the tables', without committing them."""
        with connected(self._alias) as connection:
            settings = {name for (name,) in catalog.rows(connection, "SELECT name FROM pg_settings")}
            reached = access(connection, self._request.label)
        try:
            self._begin(reached)
            # Rather an error than a row that a policy hides.
            self._open_session.ask("SET LOCAL row_security = off; SET CONSTRAINTS ALL DEFERRED;")
            self._shut_writers_out()
            self._dangling = self._count_dangling(key for key in self._parts.keys if not key.holds)
            self._request.safety()
            self._ask(_script(key.drop() for key in self._parts.remade))
            self._ask(_script(line for table in self._parts.tables for line in table.quiet()))
            self._ask(_script(f"DELETE FROM ONLY {table.name};" for table in self._parts.tables))  # noqa: S608
            self._fill([str(item.number) for item in self._stored.values()], settings)
            self._limit_locks()  # the archive's script has set its own
        except BaseException:
            self.discard()
            raise

    def check(self) -> None:
        """Compare the rows with the manifest's, look for what points at nothing, and put everything together again."""
        wanted = exact_row_counts(self._source.metadata)
        if wanted is not None:
            counts.compare(self._alias, self._of_these(wanted), self._count())
        self._require_no_dangling()
        self._ask("SET CONSTRAINTS ALL IMMEDIATE;")
        self._ask(_script(line for table in self._parts.tables for line in table.loud()))
        self._ask(_script(line for key in self._parts.remade for line in key.make()))
        self._move_sequences()

    def roll_back(self) -> None:
        """An undo brings back what was committed; the safety copy as a whole would bring back more."""
        raise SnapshotConnectorError(
            f"The rows of {single_tables.told([table.name for table in self._parts.tables])} of {self._alias!r} are "
            f"committed. `manage.py snapshots undo RUN --database {self._alias}` brings back what they "
            "were, where RUN is this restore's."
        )

    def _shut_writers_out(self) -> None:
        """From here on nobody else writes to the tables, or a row elsewhere that points at one of theirs: the server
        locks what it points at, and waits. Nor does anybody change what they are."""
        tables = sorted(self._parts.tables, key=lambda table: table.oid)
        self._ask(_script(f"LOCK TABLE ONLY {table.name} IN EXCLUSIVE MODE;" for table in tables))
        seen = Parts.answered("".join(self._ask(Parts.question(table.name for table in tables) + ";")))
        (role,) = self._open_session.ask("SELECT current_user;")
        if [table.oid for table in seen.tables] != [table.oid for table in tables]:
            raise SnapshotConnectorError(
                f"Tables of {self._alias!r} were made anew meanwhile. Nothing was changed; ask again."
            )
        if problems := list(stops(self._alias, seen, self._stored, role)):
            raise SnapshotPreflightError(f"{' '.join(problems)} Nothing was changed.")
        self._parts = seen

    def _of_these(self, wanted: Mapping[str, int]) -> dict[str, int]:
        there = {split_name(name): number for name, number in wanted.items()}
        return {
            table.name: there[split_name(table.name)] for table in self._parts.tables if split_name(table.name) in there
        }

    def _count(self) -> Mapping[str, int]:
        return catalog.counted(
            self._open_session.ask(
                _script(
                    f"SELECT to_json({literal(table.name)}::text)::text || ' ' || count(*) FROM ONLY {table.name};"  # noqa: S608
                    for table in self._parts.tables
                )
            )
        )

    def _count_dangling(self, keys: Iterable[Key]) -> dict[int, int]:
        return {key.oid: int("".join(self._ask(f"{key.count};")) or 0) for key in keys if key.count is not None}

    def _require_no_dangling(self) -> None:
        found = self._count_dangling(self._parts.keys)
        names = {key.oid: key.told for key in self._parts.keys}
        more = {names[oid]: number for oid, number in found.items() if number > self._dangling.get(oid, 0)}
        if more:
            raise SnapshotPreflightError(f"{single_tables.dangling(self._alias, more)} Nothing was changed.")

    def _move_sequences(self) -> None:
        for sequence in self._parts.sequences:
            furthest, last, called = catalog.decoded("".join(self._ask(sequence.question)))
            if statement := sequence.move(furthest, last, called):
                self._ask(statement)


def _script(lines: Iterable[str]) -> str:
    return "\n".join(lines)
