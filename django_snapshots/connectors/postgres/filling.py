"""Fills a new, empty database from a dump: by several processes of ``pg_restore``, from a private copy of the dump."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog, clearing
from django_snapshots.connectors.postgres.access import Access, access
from django_snapshots.connectors.postgres.archive import Contents, Entry, read_contents, still_to_create
from django_snapshots.connectors.postgres.preamble import unknown_settings, without_unknown_settings
from django_snapshots.connectors.postgres.quoting import identifier
from django_snapshots.connectors.postgres.session import Session
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConnectorError
from django_snapshots.processes import Tool
from django_snapshots.transfer import CHUNK_SIZE, RestoreRequest, Source


@dataclass(frozen=True, kw_only=True)
class Filling:
    """One dump and how it is to be read."""

    alias: str
    source: Source
    request: RestoreRequest
    client_directory: str | None
    owner: bool
    jobs: int

    def fill(self, connection: BaseDatabaseWrapper) -> None:
        """Fill the database of *connection*. What is restored is what the digests were proved on: nobody else can
        write to the copy between the two."""
        with self.request.temporary_directory() as directory:
            path = directory / "dump"
            self._spool(path)
            contents = read_contents(
                self.alias,
                replace(self.source, open=lambda: _read(path)),
                self.request.processes,
                self.client_directory,
            )
            roles = [name for (name,) in catalog.rows(connection, "SELECT rolname FROM pg_roles")]
            listing = directory / "contents.list"
            entries = self._wanted(connection, contents.entries, roles)
            listing.write_text("".join(f"{entry.number};\n" for entry in entries))
            reached = access(connection, self.request.label)
            known = {name for (name,) in catalog.rows(connection, "SELECT name FROM pg_settings")}
            if self._has_unknown_settings(contents, path, directory, known):
                self._through_psql(contents, path, listing, reached, known)
            else:
                self._in_parallel(contents, path, listing, reached)

    def _spool(self, path: Path) -> None:
        """Copy the whole dump; the end of the pass proves its digests."""
        with path.open("xb") as file:
            for chunk in self.source.open():
                if self.request.processes.ended:
                    raise SnapshotCancelled(f"The restore of {self.alias!r} was ended; nothing was changed.")
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise SnapshotConnectorError(
                        f"The dump of {self.alias!r} could not be copied to {path.parent}: {error.strerror}. Nothing "
                        'was changed. Make room there, or name another place in SNAPSHOTS["TEMPORARY_DIRECTORY"].'
                    ) from error

    def _wanted(
        self, connection: BaseDatabaseWrapper, entries: Collection[Entry], roles: Collection[str]
    ) -> list[Entry]:
        left_over: dict[str, Any] = catalog.decoded(catalog.rows(connection, clearing.LEFT_OVER)[0][0])
        if any(entry.is_subscription for entry in entries):
            self.request.report(f"Subscriptions are never restored; {self.alias!r} has none of the snapshot's.")
        return still_to_create(entries, left_over, roles)

    def _has_unknown_settings(self, contents: Contents, path: Path, directory: Path, known: Collection[str]) -> bool:
        """Whether ``pg_restore`` begins with a setting that this server, being older, refuses."""
        nothing = directory / "nothing.list"
        nothing.write_text("")
        argv: list[str | Path] = [contents.clients.program("pg_restore"), "--file=-", f"--use-list={nothing}", path]
        with self.request.processes.start(argv, env={"PG_COLOR": "never"}) as tool:
            script = b"".join(tool.chunks())
            self._require_success(tool)
        return bool(unknown_settings(script, known))

    def _arguments(self, reached: Access) -> list[str]:
        return [
            *([] if self.owner else ["--no-owner", "--no-acl"]),
            *([f"--role={reached.role}"] if reached.role else []),
        ]

    def _in_parallel(self, contents: Contents, path: Path, listing: Path, reached: Access) -> None:
        argv: list[str | Path] = [
            contents.clients.program("pg_restore"),
            f"--dbname={reached.conninfo}",
            f"--jobs={self.jobs}",
            "--exit-on-error",
            "--no-password",
            f"--use-list={listing}",
            *self._arguments(reached),
            path,
        ]
        env = {**reached.env, "PG_COLOR": "never"}
        with self.request.processes.start(argv, env=env, secrets=reached.secrets) as tool:
            for _ in tool.chunks():
                pass
            self._require_success(tool)

    def _through_psql(
        self, contents: Contents, path: Path, listing: Path, reached: Access, known: Collection[str]
    ) -> None:
        """In one transaction, by a script that leaves out what the server doesn't know."""
        session = Session(self.alias, self.request.processes, contents.clients, reached)
        try:
            session.ask("\\encoding UTF8\nBEGIN;")
            if reached.role:
                session.ask(f"SET LOCAL ROLE {identifier(reached.role)};")
            session.write(b"\\o /dev/null\n")
            argv: list[str | Path] = [
                contents.clients.program("pg_restore"),
                "--file=-",
                f"--use-list={listing}",
                *self._arguments(reached),
                path,
            ]
            with self.request.processes.start(argv, env={"PG_COLOR": "never"}) as tool:
                for chunk in without_unknown_settings(tool.chunks(), known):
                    session.write(chunk)
                self._require_success(tool)
            session.ask("\\o\nCOMMIT;")
            session.close()
        finally:
            session.end()

    def _require_success(self, tool: Tool) -> None:
        """Its exit status alone says so: with ``--exit-on-error`` nothing is passed over."""
        status = tool.wait()
        if self.request.processes.ended:
            raise SnapshotCancelled(f"The restore of {self.alias!r} was ended; nothing was changed.")
        if status != 0:
            hint = " Owners and grants are left out by PostgresConnector(owner=False)." if self.owner else ""
            raise SnapshotConnectorError(
                f"{self.source.filename} could not be restored for {self.alias!r}: {tool.explain()}. Nothing was "
                f"changed.{hint}"
            )
        if words := tool.stderr:
            self.request.report(f"{tool.name} said: {words}")


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk
