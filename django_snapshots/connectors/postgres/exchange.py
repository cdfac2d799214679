"""The switch: one database takes the name of another, in one transaction of a session in the maintenance database.

Who can die when, and what then holds. *Target* is the name that the project uses, *incoming* the database that is to
get it, *outgoing* the name that the target's database gets.

1. Before the transaction: a session in the target locks the preserved tables against writing and copies their rows into
   *incoming*. If we die, the server ends our sessions, the lock goes with them, and the target is as it was. *Incoming*
   has some rows that nobody sees.
2. The transaction's first rename takes the lock on the target's database object. From then on nobody can connect to
   the target; who tries, waits. It waits itself until nobody is in the target. Meanwhile a third session ends all
   sessions there but the one of step 1. If we die here, our transaction is rolled back and the target is as it was;
   others connect again. Sessions that were ended have lost what they had not committed, and nothing else.
3. When only our session of step 1 is left, it is asked whether it is alive. If so, its lock has held from the copy
   until nobody was there who could write: the copied rows are the last ones. If not, we give up as in step 2. Then it
   leaves. What was committed anywhere else in the target meanwhile is in the target's database, which is kept.
4. The rest of the transaction: rights and settings of the target for *incoming*, the second rename, the comments. All
   of
   it, the first rename too, is seen by nobody until the commit. Whoever dies before the commit, we, our server process
   or the server, the target is as it was.
5. The commit: it is durable before it is confirmed (``synchronous_commit``). If the confirmation does not come, the
   server's process is ended first, and then the names are looked at: they say what happened. If we die instead, or the
   server does, ``settle`` looks at them.

An attempt that sleeps and wakes: whoever settles it takes *incoming* away first, by a statement that waits for a
transaction like this one which is already under way. So the second rename finds no *incoming*, and the transaction
fails as a whole; or it has been committed before, and the settler sees that.

Nothing is frozen that could outlive us: no connection limit, no ALLOW_CONNECTIONS, no lock without a session. If we
only sleep, or the network is gone, the server ends these transactions after a minute.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import beside, catalog, properties
from django_snapshots.connectors.postgres.access import MAINTENANCE, brief, explained
from django_snapshots.connectors.postgres.backend import Backend
from django_snapshots.connectors.postgres.carried import Carried
from django_snapshots.connectors.postgres.maintenance import backend_of, execute, session, transaction
from django_snapshots.connectors.postgres.renewal import renew
from django_snapshots.connectors.postgres.strategy import prepared
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.redaction import redact
from django_snapshots.replaced import SnapshotUnsettled

_TRIES = 4
_POLL_SECONDS = 0.02
_BUSY = "55006"  # object_in_use
_LOCKED = "55P03"  # lock_not_available
_OUTCOME_WITHIN_SECONDS = 60.0


def _reached(phase: str) -> None:
    """Told of every phase of a switch; tests of faults are what listens."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What is to take whose name."""

    alias: str
    label: str
    target: str
    incoming: str
    outgoing: str
    """The target's database gets this name; it must not be taken."""
    remark: Callable[[str | None], str]
    """The comment of the outgoing database, made of the one that it had as the target."""
    missing: bool = False
    """Whether there is no target, so that there is nothing to keep."""
    preserve_tables: frozenset[str] = frozenset()
    carried: Mapping[str, Carried] = field(default_factory=dict)
    """The preserved tables, as *incoming* has them."""
    takes_properties: bool = False
    """Whether *incoming* gets the rights, settings, limit and comment that the target has at that moment; if that is
    missing, the rights that any new database has."""
    comment: str | None = None
    """What *incoming* is commented with otherwise."""

    def run(self) -> None:
        """Switch. Raises ``SnapshotConnectorError`` that says which state the target is in."""
        for remaining in reversed(range(_TRIES)):
            try:
                self._try()
                break
            except _InUse as error:
                if remaining:
                    continue
                raise SnapshotConnectorError(f"{error} {self.target!r} is as it was.") from error
        renew(self.alias)

    def _try(self) -> None:
        with contextlib.ExitStack() as stack:
            renamer = stack.enter_context(session(self.alias, self.label))
            watcher = stack.enter_context(session(self.alias, self.label))
            if (beside.number_of(watcher, self.target) is None) is not self.missing:
                raise SnapshotConnectorError(
                    f"The database {self.target!r} was {'made' if self.missing else 'dropped or renamed'} by somebody "
                    "else while it was restored. It was left as it is; begin again."
                )
            if self.missing:
                self._take_free_name(renamer)
                return
            insider = stack.enter_context(self._insider())
            self._copy_rows(insider)
            with self._committing(renamer), transaction(renamer):
                self._rename_both(renamer, watcher, insider)
                _reached("before the commit")
            _reached("after the commit")

    def _take_free_name(self, renamer: BaseDatabaseWrapper) -> None:
        """There is no target: a database that was missing gets its place."""
        with self._committing(renamer), transaction(renamer):
            beside.rename(renamer, self.incoming, self.target)
            beside.comment(renamer, self.target, self.comment)
            if self.takes_properties:
                properties.give_default_rights(renamer, self.target)
            _reached("before the commit")
        _reached("after the commit")

    @contextlib.contextmanager
    def _insider(self) -> Iterator[BaseDatabaseWrapper]:
        """A session in the target, in a transaction that holds the preserved tables."""
        with session(self.alias, self.label, self.target) as connection:
            connection.set_autocommit(False)
            execute(connection, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            yield connection

    def _copy_rows(self, insider: BaseDatabaseWrapper) -> None:
        """Lock what is preserved; make *incoming* hold its rows."""
        tables = Carried.find(insider, self.preserve_tables)
        if {name: table.shape for name, table in tables.items()} != {
            name: table.shape for name, table in self.carried.items()
        }:
            raise SnapshotConnectorError(
                f"The tables {', '.join(sorted({*tables, *self.carried}))} of {self.target!r} were changed while the "
                f"restore was under way; {self.target!r} is as it was. Begin it again."
            )
        if not tables:
            return
        self._lock(insider, tables)
        try:
            with session(self.alias, self.label, self.incoming) as inside, transaction(inside):
                Carried.copy(insider, inside, tables)
        except SnapshotConnectorError as error:
            raise SnapshotConnectorError(
                f"The rows of {', '.join(sorted(tables))} could not be copied: {error}. {self.target!r} is as it was."
            ) from error
        _reached("rows copied")

    def _lock(self, insider: BaseDatabaseWrapper, tables: Mapping[str, Carried]) -> None:
        try:
            execute(insider, f"LOCK TABLE {', '.join(sorted(tables))} IN EXCLUSIVE MODE")
        except Error as error:
            if catalog.state_of(error) != _LOCKED:
                raise
            insider.rollback()
            holders = ", ".join(catalog.holders(insider)) or "nobody that can be seen"
            raise _InUse(
                f"{', '.join(sorted(tables))} could not be locked in {self.target!r}. Sessions that hold locks there: "
                f"{holders}. End them, and begin again."
            ) from error

    def _rename_both(
        self, renamer: BaseDatabaseWrapper, watcher: BaseDatabaseWrapper, insider: BaseDatabaseWrapper
    ) -> None:
        # They outlive every session, and once nobody can connect nobody can end them.
        for text in prepared(insider):
            raise _InUse(text)
        number = beside.number_of(renamer, self.target)
        with _FirstRename(renamer, self.target, self.outgoing) as first:
            self._wait_for_the_lock(watcher, renamer, number, first)
            _reached("nobody can connect")
            self._empty_out(watcher, insider, number, first)
            # Alive, so its lock has held until now.
            execute(insider, "SELECT 1")
            _reached("nobody is there")
            insider.rollback()
            insider.close()
            if not first.done():
                raise self._never_alone(first)
        _reached("between the renames")
        # Not before: the rename may have waited long, and from now on nobody else changes them.
        wanted = properties.read(renamer, self.outgoing)
        if self.takes_properties:
            properties.apply(renamer, self.incoming, wanted)
            if different := properties.difference(wanted, properties.read(renamer, self.incoming)):
                raise SnapshotConnectorError(
                    f"The new database can't get what {self.target!r} has: {', '.join(different)}. "
                    f"{self.target!r} is as it was."
                )
        beside.rename(renamer, self.incoming, self.target)
        if not self.takes_properties:
            beside.comment(renamer, self.target, self.comment)
        beside.comment(renamer, self.outgoing, self.remark(wanted.comment))

    def _wait_for_the_lock(
        self, watcher: BaseDatabaseWrapper, renamer: BaseDatabaseWrapper, number: int | None, first: _FirstRename
    ) -> None:
        sql = """
            SELECT 1 FROM pg_locks WHERE granted AND locktype = 'object' AND mode = 'AccessExclusiveLock'
            AND classid = 'pg_database'::regclass AND objid = %s::text::oid AND pid = %s
        """
        while not first.ended:
            if catalog.rows(watcher, sql, [str(number), backend_of(renamer)]):
                return
            time.sleep(_POLL_SECONDS)
        if not first.done():
            raise self._never_alone(first)

    def _never_alone(self, first: _FirstRename) -> _InUse:
        return _InUse(f"The server did not see the end of all sessions in {self.target!r} in time: {first.said}.")

    def _empty_out(
        self, watcher: BaseDatabaseWrapper, insider: BaseDatabaseWrapper, number: int | None, first: _FirstRename
    ) -> None:
        """End every session in the target but *insider*; none can come any more."""
        others = "FROM pg_stat_activity WHERE datid = %s::text::oid AND pid <> %s"
        # The workers of autovacuum have no user; the rename itself ends them.
        others += " AND usesysid IS NOT NULL"
        parameters = [str(number), backend_of(insider)]
        refused: set[int] = set()
        while present := [pid for (pid,) in catalog.rows(watcher, f"SELECT pid {others}", parameters)]:
            for pid in present:
                if pid not in refused and not catalog.terminate(watcher, pid):
                    refused.add(pid)
            if first.ended or refused.issuperset(present):
                named = ", ".join(catalog.sessions_in(watcher, number, present))
                raise _InUse(
                    f"{self.target!r} can't be replaced while these sessions are in it, and they could not be ended: "
                    f"{named}. {catalog.HOW_TO_END}"
                )
            time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def _committing(self, renamer: BaseDatabaseWrapper) -> Iterator[None]:
        """What the body raises, unless the switch has taken place all the same; then nothing."""
        who = Backend.of(renamer)
        number = beside.number_of(renamer, self.incoming)
        if number is None:
            raise SnapshotConnectorError(
                f"The database {self.incoming!r} is gone: another process has settled this restore. "
                f"{self.target!r} is not changed by it any more."
            )
        try:
            yield
        except SnapshotConnectorError:
            raise
        except Error as error:
            said = redact(str(error).strip())
            try:
                switched = self._has_switched(who, number)
            except SnapshotConnectorError as unknown:
                raise SnapshotUnsettled(
                    f"The server was lost while {self.target!r} was switched ({said}), so it is either as it was or as "
                    f"it was to be: it is switched if the database of number {number} has its name. {unknown}"
                ) from error
            if not switched:
                raise SnapshotConnectorError(
                    f"{self.target!r} could not be switched: {said}. It is as it was."
                ) from error

    def _has_switched(self, who: Backend, number: int) -> bool:
        """Whether *incoming*, which has this *number*, is the target, once the server process that was to make it so
        is gone."""
        deadline = time.monotonic() + _OUTCOME_WITHIN_SECONDS
        while True:
            try:
                with explained(self.alias), brief(self.alias, database=MAINTENANCE) as connection:
                    who.end_through(connection)
                    return beside.number_of(connection, self.target) == number
            except SnapshotConnectorError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)


class _InUse(SnapshotConnectorError):
    """Somebody was in the way; it may be tried again."""


class _FirstRename:
    """Renames the target in a thread of its own, because the statement waits for what others do meanwhile."""

    def __init__(self, connection: BaseDatabaseWrapper, old: str, new: str) -> None:
        self._connection = connection
        self._old, self._new = old, new
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rename-database", daemon=True)

    @property
    def ended(self) -> bool:
        """Whether the statement has ended, however."""
        return not self._thread.is_alive()

    @property
    def said(self) -> str:
        """What the server said against it."""
        return redact(" ".join(str(self._failure or "").split()))

    def done(self) -> bool:
        """Wait for its end: whether the name is changed. Raises what went wrong, unless it was that somebody is in."""
        self._thread.join()
        if self._failure is not None and catalog.state_of(self._failure) not in (_BUSY, _LOCKED):
            raise self._failure
        return self._failure is None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.ended:
            with contextlib.suppress(Exception):
                self._connection.connection.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            beside.rename(self._connection, self._old, self._new)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = error
