"""What restores have left beside a target: found, settled after a death, brought back, removed.

Who can die when, and what then holds, for an undo: ``bring_back`` gives the kept database the name
``django_snapshots_lent_<mark of the undo>``, in one transaction with its comment. From then on it is the *incoming*
of an ``exchange``. Whoever dies before the commit leaves it lent; ``settle``, or the next ``bring_back`` of the same
state, gives it its old name back, and a sleeper that wakes finds nothing to switch in. It is never dropped on the way.
After the commit it is the target, and what was there is kept under the undo's mark.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import beside as left
from django_snapshots.connectors.postgres import catalog, properties
from django_snapshots.connectors.postgres.access import connected
from django_snapshots.connectors.postgres.backend import Backend, outcome
from django_snapshots.connectors.postgres.beside import Kind, Remark, name_of
from django_snapshots.connectors.postgres.carried import Carried
from django_snapshots.connectors.postgres.exchange import Exchange
from django_snapshots.connectors.postgres.maintenance import execute, session, transaction
from django_snapshots.connectors.postgres.new_database import define_carried, kept_remark
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotNotFoundError
from django_snapshots.replaced import Beside, Outcome
from django_snapshots.transfer import RestoreRequest, SwitchRank

_LABEL = "django-snapshots"


@contextlib.contextmanager
def _anywhere(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A session in the maintenance database or, where the role may not enter it, in the target."""
    try:
        opened = session(alias, _LABEL)
        connection = opened.__enter__()
    except SnapshotConnectorError:
        opened = session(alias, _LABEL, _target(alias))
        connection = opened.__enter__()
    with contextlib.ExitStack() as stack:
        stack.push(opened.__exit__)
        yield connection


def _target(alias: str) -> str:
    """The name of the database of *alias*; a service file may be what has it."""
    if name := connections[alias].settings_dict["NAME"]:
        return str(name)
    with connected(alias) as connection:
        return catalog.server(connection).database


def beside(alias: str) -> Sequence[Beside]:
    """Everything that carries a mark beside *alias*. Raises ``SnapshotConnectorError`` where the server is away."""
    with _anywhere(alias) as connection:
        return left.beside(connection, _target(alias), _place(connection))


def _place(connection: BaseDatabaseWrapper) -> str:
    info = connection.connection.info
    return f"{info.host or 'the local socket'}:{info.port}"


def settle(alias: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
    """Take away what the attempt *mark* could still switch in; then look at what it has done."""
    with _anywhere(alias) as connection:
        left.drop(connection, name_of(Kind.NEW, mark))
        _give_back(connection, mark)
        # From here on nothing of that attempt can change a name.
        target = _target(alias)
        if left.number_of(connection, name_of(Kind.KEPT, mark)) is not None:
            return Outcome.SWITCHED
        if "database" in noted and left.number_of(connection, target) == noted["database"]:
            return Outcome.SWITCHED
    return _of_transaction(alias, noted) if "transaction" in noted else Outcome.BEFORE


def _of_transaction(alias: str, noted: Mapping[str, Any]) -> Outcome:
    """What became of a restore in one transaction; ends the server's process that would still commit it."""
    Backend(pid=noted["pid"], started=noted["started"]).end(alias)
    state = outcome(alias, noted["transaction"])
    if state == "in progress":
        raise SnapshotConnectorError(
            f"The transaction {noted['transaction']} of an earlier restore of {alias!r} has not ended yet. "
            f"End the server's process {noted['pid']}."
        )
    return {"committed": Outcome.SWITCHED, "aborted": Outcome.BEFORE}.get(state, Outcome.UNSEEN)


def _give_back(connection: BaseDatabaseWrapper, mark: str) -> None:
    """Give what the undo *mark* has been lent its name back; nothing if it has been lent nothing."""
    name = name_of(Kind.LENT, mark)
    lent = next((item for item in left.found(connection) if item.name == name), None)
    if lent is None or lent.remark is None:
        return
    _end_all(connection, name)
    with transaction(connection):
        left.rename(connection, name, name_of(Kind.KEPT, lent.remark.mark))


def _end_all(connection: BaseDatabaseWrapper, database: str) -> None:
    """Tell the sessions in *database* to end; the rename that follows waits for them. Raises
    ``SnapshotConnectorError`` that names those which the role may not end."""
    there = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL"
    refused = [pid for (pid,) in catalog.rows(connection, there, [database]) if not catalog.terminate(connection, pid)]
    if named := catalog.sessions_in(connection, left.number_of(connection, database), refused):
        raise SnapshotConnectorError(
            f"{database!r} can't be renamed while these sessions are in it, and they could not be ended: "
            f"{', '.join(named)}. {catalog.HOW_TO_END} Then ask again."
        )


def remove(alias: str, mark: str) -> None:
    """Drop what *mark* has built or kept; what is lent to an undo stays until that is settled.

    Raises ``SnapshotConnectorError`` for a kept state whose comment can't be read: it may be of another target.
    """
    with _anywhere(alias) as connection:
        for item in left.found(connection):
            if item.mark != mark or item.kind is Kind.LENT:
                continue
            if item.kind is Kind.KEPT and item.remark is None:
                raise SnapshotConnectorError(
                    f"The comment of the database {item.name!r} can't be read, so it can't be told what it holds; it "
                    "was not dropped. Look at it, and drop it by hand if nobody needs it."
                )
            if item.remark is None or item.remark.of == _target(alias):
                left.drop(connection, item.name)


def require(alias: str, target: str, mark: str) -> None:
    """Raise ``SnapshotNotFoundError`` unless what the restore *mark* has replaced in *target* is kept."""
    with _anywhere(alias) as connection:
        _kept(connection, alias, target, mark)


def bring_back(
    alias: str, target: str, missing: bool, mark: str, request: RestoreRequest, client_directory: str | None
) -> BroughtBack:
    """Prepare to put the kept state *mark* in the place of *target*."""
    with session(alias, request.label) as connection:
        name, remark = _kept(connection, alias, target, mark)
        back = BroughtBack(
            alias=alias,
            target=target,
            missing=missing,
            request=request,
            client_directory=client_directory,
            remark=remark,
        )
        _end_all(connection, name)
        with transaction(connection):
            left.rename(connection, name, back.lent)
            left.comment(connection, back.lent, replace(remark, label=request.label).text())
    try:
        back.carry()
    except BaseException:
        with contextlib.suppress(SnapshotConnectorError):
            back.discard()
        raise
    return back


def _kept(connection: BaseDatabaseWrapper, alias: str, target: str, mark: str) -> tuple[str, Remark]:
    """The database that is the kept state *mark* of *target*, and its remark. What an undo was lent that is not at work
    any more is given back for it: whoever asks has the target's lock."""
    for item in left.found(connection):
        if item.remark is None or (item.remark.of, item.remark.mark) != (target, mark):
            continue
        if item.kind is Kind.LENT and item.in_use:
            # None of them, where that undo works elsewhere on the server.
            there = ", ".join(catalog.sessions_in(connection, left.number_of(connection, item.name)))
            raise SnapshotConnectorError(
                f"What the restore {mark} has replaced in {alias!r} is {item.name!r} now: an undo that was begun has "
                f"it. Wait until that one has ended. In that database are: {there or 'no sessions'}; end those "
                "that are nobody's undo, such as a monitoring agent's."
            )
        if item.kind is Kind.LENT:
            _give_back(connection, item.mark)
        if item.kind is not Kind.NEW:
            return name_of(Kind.KEPT, mark), item.remark
    raise SnapshotNotFoundError(f"What the restore {mark} has replaced in {alias!r} is not kept any more.")


@dataclass(kw_only=True)
class BroughtBack:
    """One undo; ``Prepared`` once ``carry`` has returned."""

    alias: str
    target: str
    missing: bool
    request: RestoreRequest
    client_directory: str | None
    remark: Remark
    """Of the kept state."""
    switch_rank: SwitchRank = SwitchRank.REVERSIBLE
    _carried: dict[str, Carried] = field(default_factory=dict)
    _switched: bool = False

    @property
    def lent(self) -> str:
        """What the kept database is called meanwhile."""
        return name_of(Kind.LENT, self.request.mark)

    @property
    def _kept(self) -> str:
        return name_of(Kind.KEPT, self.request.mark)

    def carry(self) -> None:
        """Make the preserved tables of the target in the database that comes back, in place of those that it has."""
        if self.missing:
            return
        with (
            session(self.alias, self.request.label, self.target) as origin,
            session(self.alias, self.request.label, self.lent) as goal,
        ):
            self._carried = define_carried(self.alias, self.request, self.client_directory, origin, goal)

    def check(self) -> None:
        """The kept database answers."""
        with session(self.alias, self.request.label, self.lent) as connection:
            execute(connection, "SELECT 1")

    def switch(self) -> None:
        """Give it the target's name."""
        with session(self.alias, self.request.label) as connection:
            number = left.number_of(connection, self.lent)
        self.request.note({"database": number})
        Exchange(
            alias=self.alias,
            label=self.request.label,
            target=self.target,
            incoming=self.lent,
            outgoing=self._kept,
            remark=kept_remark(self.target, self.request.mark, self.request),
            preserve_tables=self.request.preserve_tables,
            carried=self._carried,
            comment=self.remark.comment,
            missing=self.missing,
        ).run()
        self._switched = True

    def roll_back(self) -> None:
        """Give the target's database its name back, and lend the kept one again; ``discard`` returns it."""
        if not self._switched or self.missing:
            raise SnapshotConnectorError(f"The undo of {self.alias!r} can't be taken back.")
        with session(self.alias, self.request.label) as connection:
            remark = Remark.read(properties.read(connection, self._kept).comment)
        with session(self.alias, self.request.label, self._kept) as connection:
            tables = Carried.named(connection, self._carried)
        Exchange(
            alias=self.alias,
            label=self.request.label,
            target=self.target,
            incoming=self._kept,
            outgoing=self.lent,
            remark=lambda comment: replace(self.remark, comment=comment).text(),
            preserve_tables=self.request.preserve_tables,
            carried=tables,
            comment=remark.comment if remark else None,
        ).run()
        self._switched = False

    def discard(self) -> None:
        """Give what was lent back."""
        with session(self.alias, self.request.label) as connection:
            _give_back(connection, self.request.mark)
