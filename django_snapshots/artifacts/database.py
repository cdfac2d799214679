"""The artifact kind ``database``: one stored file per alias, made and read by the alias's connector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from django_snapshots.connectors.auto import connector_for, connector_name
from django_snapshots.connectors.derived import base_of, ensure
from django_snapshots.connectors.identity import database_identity
from django_snapshots.connectors.protocols import StreamingConnector
from django_snapshots.connectors.single_tables import only_the_whole
from django_snapshots.exceptions import SnapshotNotFoundError, SnapshotPreflightError
from django_snapshots.replaced import (
    Beside,
    Drills,
    Examines,
    Finding,
    KeepsReplaced,
    KeepsTables,
    Outcome,
    Preflights,
    RestoresTables,
    SetsAside,
)
from django_snapshots.transfer import (
    Dump,
    DumpRequest,
    EndsSessions,
    Identified,
    Prepared,
    RestoreRequest,
    Source,
    Target,
)


class DatabaseArtifact:
    """Every alias in *aliases*, each through the connector that *connectors* or auto-detection gives it."""

    type = "database"

    def __init__(self, *, aliases: Sequence[str], connectors: Mapping[str, object]) -> None:
        self._aliases = tuple(aliases)
        self._connectors = connectors

    def subjects(self) -> Sequence[str]:
        """The aliases."""
        return self._aliases

    def connector(self, alias: str) -> StreamingConnector:
        """The connector of *alias*."""
        base = base_of(ensure(alias))
        return connector_for(alias, self._connectors if base == alias else self._like(alias, base))

    def _like(self, alias: str, base: str) -> Mapping[str, object]:
        """Another database of an alias has that one's connector."""
        return {alias: self._connectors.get(base, "auto")}

    @contextlib.contextmanager
    def _named_dump(self, alias: str, request: DumpRequest) -> Iterator[Dump]:
        connector = self.connector(alias)

        with connector.open_dump(alias, request) as dump:

            def metadata() -> dict[str, Any]:
                return {**dump.metadata(), "database": alias, "connector": connector_name(connector)}

            yield Dump(suffix=dump.suffix, started_at=dump.started_at, chunks=dump.chunks, metadata=metadata)

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Dump the alias *subject*; its metadata names the alias and the connector."""
        return self._named_dump(subject, request)

    def target(self, subject: str) -> Target:
        """The alias's database."""
        return self.connector(subject).target(subject)

    def identity(self, subject: str) -> str:
        """What the alias's database physically is: what its connector says, if that has a word in it; else by the
        engine, whatever the connector is."""
        connector = self.connector(subject)
        return connector.identity(subject) if isinstance(connector, Identified) else database_identity(subject)

    def end_sessions(self, subject: str, labels: Sequence[str]) -> int:
        """What the alias's connector does; nothing for one that has no sessions to end."""
        connector = self.connector(subject)
        return connector.end_sessions(subject, labels) if isinstance(connector, EndsSessions) else 0

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Restore the alias *subject*; refuses a dump that another connector wrote, and single tables where the
        connector doesn't know them: it would restore the whole."""
        connector = self.connector(subject)
        if (refusal := self._refusal(subject, source, request)) is not None:
            raise SnapshotPreflightError(refusal)
        return connector.prepare(subject, source, request)

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """What the alias's connector has to say; what it can't restore at all stops everything else."""
        connector = self.connector(subject)
        if (refusal := self._refusal(subject, source, request)) is not None:
            return [Finding(text=refusal, stops=True)]
        return connector.preflight(subject, source, request) if isinstance(connector, Preflights) else ()

    def restores_tables(self, subject: str) -> bool:
        """Whether the alias's connector can restore single tables."""
        connector = self.connector(subject)
        return isinstance(connector, RestoresTables) and connector.restores_tables(subject)

    def keeps_tables(self, subject: str) -> bool:
        """Whether the alias's connector keeps the rows of single tables that it replaces."""
        connector = self.connector(subject)
        return isinstance(connector, KeepsTables) and connector.keeps_tables(subject)

    def _refusal(self, subject: str, source: Source, request: RestoreRequest) -> str | None:
        if (stranger := _written_by_another(subject, source, self.connector(subject))) is not None:
            return stranger
        if request.tables and not self.restores_tables(subject):
            return only_the_whole(subject, request.tables)
        return None

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any] | None:
        """What the alias's connector finds; ``None`` if it can't look, or if another connector wrote the dump."""
        connector = self.connector(subject)
        if _written_by_another(subject, source, connector) is not None or not isinstance(connector, Examines):
            return None
        return connector.examine(subject, source, request)

    def drills(self, subject: str) -> bool:
        """Whether the alias's connector can build a state only to be looked at."""
        connector = self.connector(subject)
        return connector.drills(subject) if isinstance(connector, Drills) else isinstance(connector, KeepsReplaced)

    def sets_aside(self, subject: str) -> bool:
        """Whether the alias's connector takes the rows that are to stay out of the database, and puts them back."""
        connector = self.connector(subject)
        return isinstance(connector, SetsAside) and connector.sets_aside(subject)

    # What restores leave beside the alias's database; nothing where its connector keeps nothing.

    def keeps(self, subject: str) -> bool:
        connector = self.connector(subject)
        return isinstance(connector, KeepsReplaced) and connector.keeps(subject)

    def beside(self, subject: str) -> Sequence[Beside]:
        connector = self.connector(subject)
        return connector.beside(subject) if isinstance(connector, KeepsReplaced) else ()

    def settle(self, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
        connector = self.connector(subject)
        return connector.settle(subject, mark, noted) if isinstance(connector, KeepsReplaced) else Outcome.UNSEEN

    def bring_back(self, subject: str, mark: str, request: RestoreRequest) -> Prepared:
        connector = self.connector(subject)
        if not isinstance(connector, KeepsReplaced):
            raise SnapshotNotFoundError(f"Nothing is kept beside the database of {subject!r}.")
        return connector.bring_back(subject, mark, request)

    def remove(self, subject: str, mark: str) -> None:
        connector = self.connector(subject)
        if isinstance(connector, KeepsReplaced):
            connector.remove(subject, mark)


def _written_by_another(subject: str, source: Source, connector: StreamingConnector) -> str | None:
    written_by, here = source.metadata.get("connector"), connector_name(connector)
    if written_by is None or written_by == here:
        return None
    return (
        f"{source.filename} was dumped by {written_by}, but the connector of {subject!r} is {here}. "
        'Name the connector that wrote it in SNAPSHOTS["DATABASE_CONNECTORS"], on a database of that engine.'
    )
