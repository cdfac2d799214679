"""Restores into a new database, which then takes the name of the one that is there.

Who can die when, and what then holds:

- until the switch the target is only read, and only its rights, settings and the journal's tables. Whoever dies leaves
  a database ``django_snapshots_new_<mark>``, which ``settle``, ``discard`` or ``remove`` drops, and a private copy of
  the dump, which the next restore on the same host removes;
- the switch: see ``exchange``. One commit, after which the target's old database is called
  ``django_snapshots_kept_<mark>``; so the names alone say what happened, whoever has died;
- after it: what was replaced is kept until ``remove``; without a mark, ``discard`` drops it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import beside, carried, catalog, counts, properties
from django_snapshots.connectors.postgres.beside import Kind, Remark, name_of
from django_snapshots.connectors.postgres.carried import Carried
from django_snapshots.connectors.postgres.clients import choose, major_of
from django_snapshots.connectors.postgres.exchange import Exchange
from django_snapshots.connectors.postgres.filling import Filling
from django_snapshots.connectors.postgres.maintenance import session, settings_for, transaction
from django_snapshots.connectors.postgres.properties import Properties
from django_snapshots.connectors.postgres.strategy import Way
from django_snapshots.connectors.recorded import by_name, exact_row_counts
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.redaction import redact
from django_snapshots.transfer import RestoreRequest, Source, SwitchRank

MOST_JOBS = 8


def default_jobs() -> int:
    """As many processes as there are processors, but not more than eight."""
    return max(1, min(MOST_JOBS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))


@dataclass(kw_only=True)
class NewDatabase:
    """One restore; ``Prepared`` and ``Inspectable`` once ``build`` has returned."""

    alias: str
    source: Source
    request: RestoreRequest
    way: Way
    client_directory: str | None
    owner: bool
    jobs: int
    switch_rank: SwitchRank = SwitchRank.REVERSIBLE
    _mark: str = ""
    _carried: dict[str, Carried] = field(default_factory=dict)
    _state: str = "building"
    _presence: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self._mark = self.request.mark or f"unmarked_{secrets.token_hex(8)}"

    @property
    def _new(self) -> str:
        return name_of(Kind.NEW, self._mark)

    @property
    def _kept(self) -> str:
        return name_of(Kind.KEPT, self._mark)

    def build(self) -> None:
        """Make the new database and fill it."""
        try:
            # Held for as long as the new database is ours: it shows others that somebody is at work.
            maintenance = self._presence.enter_context(session(self.alias, self.request.label))
            self._create(maintenance)
            filling = Filling(
                alias=self.alias,
                source=self.source,
                request=self.request,
                client_directory=self.client_directory,
                owner=self._with_owner,
                jobs=self.jobs,
            )
            with session(self.alias, self.request.label, self._new) as connection:
                filling.fill(connection)
                if not self.way.missing:
                    self._carry(connection)
                self._report_extensions(connection)
            self._state = "built"
        except BaseException:
            with contextlib.suppress(SnapshotConnectorError):
                self.discard()
            raise

    def check(self) -> None:
        """Compare the rows of every table with the manifest's."""
        self._require("built")
        wanted = exact_row_counts(self.source.metadata)
        with session(self.alias, self.request.label, self._new) as connection:
            if wanted is not None:
                carried_over = catalog.numbers(connection, self._carried)
                found = catalog.row_counts(connection, carried_over)
                counts.compare(self.alias, wanted, found, catalog.rerouted(connection))
            counts.compare_large_objects(self.alias, self.source.metadata, catalog.large_objects(connection))

    def switch(self) -> None:
        """Give the new database the target's name, and the target's one another."""
        self._require("built")
        if self.request.drill:
            raise SnapshotConnectorError(f"A drill of {self.alias!r} is never switched.")
        with session(self.alias, self.request.label) as connection:
            number = beside.number_of(connection, self._new)
        self.request.note({"database": number})
        self._presence.close()
        Exchange(
            alias=self.alias,
            label=self.request.label,
            target=self.way.target,
            incoming=self._new,
            outgoing=self._kept,
            remark=kept_remark(self.way.target, self._mark, self.request),
            preserve_tables=self.request.preserve_tables,
            carried=self._carried,
            takes_properties=True,
            missing=self.way.missing,
        ).run()
        self._state = "switched"

    def roll_back(self) -> None:
        """Give the target's old database its name back."""
        self._require("switched")
        if self.way.missing:
            raise SnapshotConnectorError(
                f"There was no database {self.way.target!r} before; it holds the snapshot now. Drop it if it is not "
                "wanted."
            )
        with session(self.alias, self.request.label) as connection:
            remark = Remark.read(properties.read(connection, self._kept).comment)
        with session(self.alias, self.request.label, self._kept) as connection:
            tables = Carried.named(connection, self._carried)
        Exchange(
            alias=self.alias,
            label=self.request.label,
            target=self.way.target,
            incoming=self._kept,
            outgoing=self._new,
            remark=lambda _: self._remark().text(),
            preserve_tables=self.request.preserve_tables,
            carried=tables,
            comment=remark.comment if remark else None,
        ).run()
        self._state = "rolled back"

    def discard(self) -> None:
        """Drop what was built and not switched in; without a mark, what was replaced as well."""
        self._presence.close()
        with session(self.alias, self.request.label) as connection:
            beside.drop(connection, self._new)
            if self._state == "switched" and not self.request.mark:
                beside.drop(connection, self._kept)

    def django_settings(self) -> Mapping[str, Any]:
        """An entry of ``DATABASES`` that leads to the new database."""
        self._require("built")
        return settings_for(self.alias, self.request.label, self._new)

    @property
    def _with_owner(self) -> bool:
        return self.owner if self.request.owner is None else self.request.owner

    def _require(self, state: str) -> None:
        if self._state != state:
            raise SnapshotConnectorError(f"The restore of {self.alias!r} is {self._state}, not {state}.")

    def _remark(self) -> Remark:
        return Remark(of=self.way.target, mark=self._mark, label=self.request.label)

    def _create(self, connection: BaseDatabaseWrapper) -> None:
        wanted = self._properties(connection)
        try:
            properties.create(connection, self._new, wanted)
        except Error as error:
            if not self._may_do_without_locale:
                raise
            self.request.report(
                f"{self.alias!r} was made with the server's own locale, because that of the snapshot could not be had "
                f"({redact(str(error).strip())}): texts may sort in another order."
            )
            beside.drop(connection, self._new)
            encoding = {key: value for key, value in wanted.locale.items() if key == "encoding"}
            properties.create(connection, self._new, replace(wanted, locale=encoding))
        beside.comment(connection, self._new, self._remark().text())
        if not self.way.missing:
            self._rehearse(connection, wanted)
        elif not self.request.drill:
            self.request.report(
                f"The database {self.way.target!r} was missing, and gets the rights that any new one has: every role "
                "may connect. Rights and settings of the database itself are not in a snapshot."
            )

    def _properties(self, connection: BaseDatabaseWrapper) -> Properties:
        """The target's; where there is none, what the snapshot says, with the role as the owner."""
        if not self.way.missing:
            return properties.read(connection, self.way.target)
        ((me,),) = catalog.rows(connection, "SELECT current_user::text")
        return Properties(owner=me, locale=properties.recorded_locale(self.source.metadata))

    @property
    def _may_do_without_locale(self) -> bool:
        return self.way.missing and "collate" in properties.recorded_locale(self.source.metadata)

    def _rehearse(self, connection: BaseDatabaseWrapper, wanted: Properties) -> None:
        """Give the new database all that the target has, look, and take it back: some of it would be in the way of the
        restore. What can't be given is found now, before hours of work."""
        different: list[str] = []
        try:
            with transaction(connection):
                properties.apply(connection, self._new, wanted)
                different = properties.difference(wanted, properties.read(connection, self._new))
                raise _Rehearsed
        except _Rehearsed:
            pass
        except Error as error:
            different = [redact(str(error).strip())]
        if different:
            raise SnapshotPreflightError(
                f"A new database can't get what {self.way.target!r} has: {'; '.join(different)}. Nothing was changed. "
                'Restore as a superuser, or in one transaction: PostgresConnector(strategy="transaction").'
            )

    def _carry(self, goal: BaseDatabaseWrapper) -> None:
        """Make the preserved tables in the new database, without rows."""
        with session(self.alias, self.request.label, self.way.target) as origin:
            self._carried = define_carried(self.alias, self.request, self.client_directory, origin, goal)

    def _report_extensions(self, connection: BaseDatabaseWrapper) -> None:
        installed = catalog.extensions(connection)
        for name, version in by_name(self.source.metadata, "extensions", str).items():
            if installed.get(name, version) != version:
                self.request.report(
                    f"The extension {name} is at version {installed[name]} in {self.alias!r} now; "
                    f"it was {version} in the snapshot."
                )


class _Rehearsed(Exception):
    """Not an error: it takes back what was only tried."""


def kept_remark(target: str, mark: str, request: RestoreRequest) -> Callable[[str | None], str]:
    """Writes the comment of what is replaced; takes the one that it had."""

    def remark(comment: str | None) -> str:
        now = datetime.now(UTC).isoformat()
        return Remark(
            of=target, mark=mark, label=request.label, about=request.about, kept_at=now, comment=comment
        ).text()

    return remark


def define_carried(
    alias: str,
    request: RestoreRequest,
    client_directory: str | None,
    origin: BaseDatabaseWrapper,
    goal: BaseDatabaseWrapper,
) -> dict[str, Carried]:
    """Make the preserved tables of *origin* in *goal*, without rows; return what there is now."""
    tables = Carried.find(origin, request.preserve_tables)
    if not tables:
        return {}
    version = catalog.server(origin).version
    clients = choose(
        request.processes,
        client_directory,
        ["pg_dump", "psql"],
        at_least=major_of(version),
        because=f"The alias {alias!r} is on PostgreSQL {version}",
    )
    carried.define(alias, request.processes, clients, origin, goal, tables, request.label)
    return Carried.named(goal, tables)
