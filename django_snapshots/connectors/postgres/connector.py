"""The connector for PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import facts
from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.identity import database_identity
from django_snapshots.connectors.postgres import catalog, clearing, dumping, examining, kept, sessions, tables_preflight
from django_snapshots.connectors.postgres.access import connected, exists
from django_snapshots.connectors.postgres.new_database import NewDatabase, default_jobs
from django_snapshots.connectors.postgres.preflight import Survey, survey
from django_snapshots.connectors.postgres.restoring import Restoring
from django_snapshots.connectors.postgres.strategy import STRATEGIES, Strategy, Way, choose, way_back
from django_snapshots.connectors.postgres.tables import TablesRestoring
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConfigurationError,
    SnapshotConnectorError,
    SnapshotPreflightError,
)
from django_snapshots.replaced import Beside, Finding, Outcome
from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, Target

_LABEL = "django-snapshots"


class PostgresConnector(FileTier):
    """Dumps with ``pg_dump`` in custom format, uncompressed, as a stream; restores into a new database, which then
    takes the place of the old one, or in one transaction.

    The first keeps what is replaced, so that it can be brought back. While the second runs, whoever writes to the
    database waits for its end.
    """

    def __init__(
        self,
        *,
        client_directory: str | None = None,
        dump_alias: str | None = None,
        owner: bool = True,
        strategy: Strategy = "auto",
        jobs: int | None = None,
    ) -> None:
        """Choose how.

        *client_directory* holds ``pg_dump``, ``pg_restore`` and ``psql``; without it they are looked for on ``PATH``
        and in the usual places. *dump_alias* is dumped through where the alias itself goes through a pooler.
        *owner* restores owners and grants, which the role must have the right to; without it everything belongs to
        the role that restores. *strategy* is ``"new-database"``, ``"transaction"``, or ``"auto"``: the first where it
        can be had. *jobs* is how many processes fill a new database; one for each processor, eight at most, if it isn't
        said.
        """
        if strategy not in STRATEGIES:
            raise SnapshotConfigurationError(
                f"PostgresConnector knows no strategy {strategy!r}; it is one of {', '.join(map(repr, STRATEGIES))}."
            )
        if jobs is not None and jobs < 1:
            raise SnapshotConfigurationError(f"PostgresConnector needs one job at least, not {jobs!r}.")
        self._client_directory = client_directory
        self._dump_alias = dump_alias
        self._owner = owner
        self._strategy: Strategy = strategy
        self._jobs = jobs

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Dump the alias *subject*."""
        return dumping.open_dump(subject, request, client_directory=self._client_directory, dump_alias=self._dump_alias)

    def target(self, subject: str) -> Target:
        """Describe the database of the alias *subject*."""
        try:
            with connected(subject) as connection:
                server = catalog.server(connection)
                return Target(
                    name=server.database,
                    description=f'PostgreSQL database "{server.database}" on {_place(connection)}',
                    empty=clearing.is_empty(connection),
                    identity=server.identity,
                )
        except SnapshotConnectorError:
            if exists(subject):
                raise
            return _missing(subject)

    def end_sessions(self, db_alias: str, labels: Sequence[str]) -> int:
        """End the sessions of earlier attempts: those that dump and those that restore."""
        return sum(sessions.end_sessions(alias, labels) for alias in {db_alias, self._dump_alias or db_alias})

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Have ``pg_restore`` list the archive, and look for the manifest's tables in it; needs no server."""
        return examining.examine(subject, source, request, self._client_directory)

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """Everything that stands in the way of a restore of the alias *subject*, or will surprise."""
        if request.tables:
            return self._survey_tables(subject, source, request).findings
        return self._survey(subject, source, request)[1].findings

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Restore the alias *subject* beside its database, or into it up to the COMMIT; single tables always so."""
        if request.tables:
            return self._tables(subject, source, request)
        way, survey = self._survey(subject, source, request)
        survey.require_possible(subject)
        contents = survey.contents
        assert contents is not None  # noqa: S101 - a survey that could not read them has refused
        restoring = (
            self._new_database(subject, source, request, way)
            if way.new_database
            else Restoring(subject, source, request, contents, owner=self._owner)
        )
        restoring.build()
        return restoring

    def restores_tables(self, subject: str) -> bool:
        """Whether single tables of the alias *subject* can be restored: always, in one transaction."""
        facts.require_alias(subject)
        return True

    def keeps(self, subject: str) -> bool:
        """Whether a restore of the alias *subject* makes a new database, and keeps the old one."""
        facts.require_alias(subject)
        return choose(subject, self._strategy, drill=False, label=_LABEL).new_database

    def beside(self, subject: str) -> Sequence[Beside]:
        """The databases that restores of the alias *subject* have left."""
        facts.require_alias(subject)
        return kept.beside(subject)

    def settle(self, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
        """Bring the restore *mark* of the alias *subject* to its end."""
        facts.require_alias(subject)
        return kept.settle(subject, mark, noted)

    def bring_back(self, subject: str, mark: str, request: RestoreRequest) -> Prepared:
        """Prepare to put what the restore *mark* has replaced in the place of the alias's database."""
        facts.require_alias(subject)
        way = way_back(subject, request.label)
        if against := (*way.against, *way.meanwhile):
            # Who settles a restore in one transaction must hear that there is nothing, and not try it for ever.
            kept.require(subject, way.target, mark)
            kind = SnapshotPreflightError if way.against else SnapshotBusyError
            raise kind(f"What was replaced in {subject!r} can't take its place again now. {' '.join(against)}")
        return kept.bring_back(subject, way.target, way.missing, mark, request, self._client_directory)

    def remove(self, subject: str, mark: str) -> None:
        """Drop what the restore *mark* of the alias *subject* has built or kept."""
        facts.require_alias(subject)
        kept.remove(subject, mark)

    def _survey(self, subject: str, source: Source, request: RestoreRequest) -> tuple[Way, Survey]:
        facts.require_alias(subject)
        # What was said to keep nothing has its safety copy: nobody would look for a second state beside that.
        strategy = "transaction" if request.keeps is False and self._strategy == "auto" else self._strategy
        way = choose(subject, strategy, drill=request.drill, label=request.label)
        if request.keeps and not way.new_database:
            raise SnapshotPreflightError(
                f"{subject!r} was about to be restored by a new database, and can't be any more, so nothing was "
                f"touched. {' '.join(way.against)} Or ask for the restore again: it then takes another way."
            )
        owner = self._owner if request.owner is None else request.owner
        return way, survey(subject, source, request, way, client_directory=self._client_directory, owner=owner)

    def _survey_tables(self, subject: str, source: Source, request: RestoreRequest) -> tables_preflight.TablesSurvey:
        facts.require_alias(subject)
        return tables_preflight.survey(
            subject, source, request, missing=not exists(subject), client_directory=self._client_directory
        )

    def _tables(self, subject: str, source: Source, request: RestoreRequest) -> TablesRestoring:
        survey = self._survey_tables(subject, source, request)
        survey.require_possible(subject)
        restoring = TablesRestoring(subject, source, request, survey)
        restoring.build()
        return restoring

    def _new_database(self, subject: str, source: Source, request: RestoreRequest, way: Way) -> NewDatabase:
        return NewDatabase(
            alias=subject,
            source=source,
            request=request,
            way=way,
            client_directory=self._client_directory,
            owner=self._owner,
            jobs=self._jobs or default_jobs(),
        )


def _place(connection: BaseDatabaseWrapper) -> str:
    info = connection.connection.info
    return f"{info.host or 'the local socket'}:{info.port}"


def _missing(alias: str) -> Target:
    settings = connections[alias].settings_dict
    host = settings.get("HOST") or "the local socket"
    return Target(
        name=str(settings["NAME"]),
        description=f'PostgreSQL database "{settings["NAME"]}" on {host}, which does not exist',
        empty=True,
        identity=database_identity(alias),
    )
