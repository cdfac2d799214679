"""One transaction of one ``psql`` that changes a database: nobody sees anything of it before its COMMIT.

Who can die when, and what then holds: until the COMMIT the server rolls back, whoever dies: we, the ``psql``, its
process on the server, or the server itself. The target is as it was. Before the COMMIT is sent, the transaction's
number is noted where it is durable; so after a death at that very moment the server says which of the two it is
(``pg_xact_status``). It commits durably before it answers (``synchronous_commit``).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Collection, Iterable

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.access import SERVER_KEEPALIVES, Access, connected
from django_snapshots.connectors.postgres.archive import Contents
from django_snapshots.connectors.postgres.backend import WHO, Backend, outcome
from django_snapshots.connectors.postgres.feeding import Feeder
from django_snapshots.connectors.postgres.preamble import without_unknown_settings
from django_snapshots.connectors.postgres.quoting import identifier
from django_snapshots.connectors.postgres.session import Session
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConnectorError, SnapshotError
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.transfer import RestoreRequest, Source, SwitchRank

LOCK_TIMEOUT_SECONDS = 60
"""How long a restore waits for each table that somebody else uses."""

# READ COMMITTED, whatever the default is: else rows that are committed while a LOCK waits are not seen, and stay.
# A server that is busy looks for a vanished client only if it is told to, and that works on Linux.
_OPENING = """\\encoding UTF8
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL client_min_messages = warning;
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout') \\g /dev/null
SELECT set_config('synchronous_commit', 'on', true)
WHERE current_setting('synchronous_commit') IN ('off', 'local') \\g /dev/null
SELECT set_config('client_connection_check_interval', '5s', true) WHERE version() LIKE '%linux%' \\g /dev/null
SET LOCAL search_path = pg_catalog, pg_temp;
"""

# The end of what pg_restore --single-transaction writes, and more bytes than it has.
_COMMIT = re.compile(rb"\nCOMMIT;\n(?=(?:\n|--[^\n]*\n|\\unrestrict [^\n]*\n)*\Z)")
_END_BYTES = 4096


class InTransaction:
    """What is common to all restores that are made in a transaction; ``psql`` dies with the thread that began it."""

    switch_rank = SwitchRank.FINAL
    _hint = ""
    """What to do besides, if the archive's script fails."""

    def __init__(self, alias: str, source: Source, request: RestoreRequest, contents: Contents) -> None:
        self._alias = alias
        self._source = source
        self._request = request
        self._contents = contents
        self._session: Session | None = None
        self._backend: Backend | None = None
        self._switched = False

    def switch(self) -> None:
        """Commit."""
        session = self._open_session
        (transaction,) = session.ask("SELECT pg_current_xact_id();")
        assert self._backend is not None  # noqa: S101 - it was asked when the session was opened
        self._request.note({"transaction": transaction, "pid": self._backend.pid, "started": self._backend.started})
        try:
            # Behind a pooler the next client gets this session: it must not find the archive's settings.
            session.ask("RESET ALL; RESET ROLE; SET LOCAL synchronous_commit = on; COMMIT;")
        except SnapshotError as error:
            self._require_committed(transaction, error)
        self._switched = True
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            session.close()

    def roll_back(self) -> None:
        """Not in this version: what was committed can only be replaced again."""
        raise SnapshotConnectorError(
            f"The restore of {self._alias!r} is committed, and PostgreSQL keeps nothing of what it replaced. "
            "Restore the safety snapshot that was taken before."
        )

    def discard(self) -> None:
        """End ``psql``; unless it has committed, wait until the server has rolled its transaction back."""
        if self._session is None:
            return
        self._session.end()
        self._session = None
        if self._backend and not self._switched:
            self._backend.end(self._alias)

    def _require_committed(self, transaction: str, cause: SnapshotError) -> None:
        """Raise *cause* unless the server did commit: only its answer to that was lost then."""
        try:
            state = outcome(self._alias, transaction)
        except SnapshotConnectorError:
            state = "not known, because it doesn't answer"
        if state == "aborted":
            raise type(cause)(f"{cause} The server rolled back: {self._alias!r} is as it was.") from cause
        if state != "committed":
            raise SnapshotUnsettled(
                f"{cause} This was while the restore of {self._alias!r} was committed, so the database is either as it "
                f"was or as the snapshot. What the server says of its transaction is {state}. Ask it again: "
                f"SELECT pg_xact_status('{transaction}')."
            ) from cause

    @property
    def _open_session(self) -> Session:
        if self._session is None or self._switched:
            raise SnapshotConnectorError(f"The restore of {self._alias!r} has ended already.")
        return self._session

    def _begin(self, reached: Access) -> None:
        """Open the session and its transaction."""
        session = self._session = Session(self._alias, self._request.processes, self._contents.clients, reached)
        self._backend = Backend.parse(session.ask(_OPENING + WHO)[-1])
        session.ask(f"{SERVER_KEEPALIVES} \\g /dev/null")
        self._limit_locks()
        if reached.role:
            session.ask(f"SET LOCAL ROLE {identifier(reached.role)};")

    def _limit_locks(self) -> None:
        self._open_session.ask(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s';")

    def _ask(self, script: str) -> list[str]:
        """Run *script*, which may wait for locks; what it says if it fails tells who is in the way."""
        started = time.monotonic()
        try:
            return self._open_session.ask(script)
        except SnapshotCancelled:
            raise
        except SnapshotConnectorError as error:
            raise self._not_changed(error, started) from error

    def _not_changed(self, error: SnapshotConnectorError, started: float) -> SnapshotConnectorError:
        waited = time.monotonic() - started >= LOCK_TIMEOUT_SECONDS
        return SnapshotConnectorError(f"{error} Nothing was changed.{self._in_the_way() if waited else ''}")

    def _in_the_way(self) -> str:
        with contextlib.suppress(SnapshotConnectorError), connected(self._alias) as connection:
            if holders := catalog.holders(connection):
                return f" Other sessions that hold locks in this database: {', '.join(holders)}; end them first."
        return ""

    def _fill(self, numbers: Iterable[str], settings: Collection[str], options: Collection[str] = ()) -> None:
        """Stream these entries of the archive through ``pg_restore`` into ``psql``; ends only if all three are
        complete. *settings* are those that the server knows."""
        self._open_session.write(b"\\o /dev/null\n")
        with self._request.temporary_directory() as directory:
            listing = directory / "contents.list"
            listing.write_text("".join(f"{number};\n" for number in numbers))
            program = str(self._contents.clients.program("pg_restore"))
            # Else the script has a COMMIT of its own in the middle, behind the large objects; so it has one at its end.
            argv = [program, "--file=-", "--single-transaction", f"--use-list={listing}", *options]
            with (
                self._request.processes.start(argv, stdin=subprocess.PIPE, env={"PG_COLOR": "never"}) as tool,
                Feeder(tool, self._source.open(), to_the_end=True) as feeder,
            ):
                end = b""
                for chunk in without_unknown_settings(tool.chunks(), settings):
                    piece, end = (end + chunk)[:-_END_BYTES], (end + chunk)[-_END_BYTES:]
                    if piece:
                        self._run(piece)
                status = tool.wait()
                feeder.finish()
                if self._request.processes.ended:
                    raise SnapshotCancelled(f"The restore of {self._alias!r} was ended; nothing was changed.")
                if status != 0:
                    raise SnapshotConnectorError(
                        f"{self._source.filename} for {self._alias!r} can't be read: {tool.explain()}. "
                        "Nothing was changed."
                    )
            if _COMMIT.search(end) is None:
                raise SnapshotConnectorError(
                    f"{program} has written no COMMIT at the end of the script for {self._alias!r}, so where its "
                    "transaction ends is not known. Nothing was changed. Use another version of PostgreSQL's programs."
                )
            self._run(_COMMIT.sub(b"\n", end))
            self._run(b"")

    def _run(self, script: bytes) -> None:
        """Send a piece of the archive's script; its end, an empty piece, waits until all of it ran. The script has set
        the encoding that it is in itself."""
        try:
            self._open_session.write(script) if script else self._open_session.ask("\\o\n\\encoding UTF8")
        except SnapshotConnectorError as error:
            raise SnapshotConnectorError(f"{error} Nothing was changed.{self._hint}") from error
