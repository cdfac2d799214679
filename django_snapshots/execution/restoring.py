"""What restores and undos take from the journal and give to it.

Who can die when, and what then holds: before anything is built, every target is in the journal with the mark of what
will lie beside it (``ledger``). The point of no return is written there before the first switch. Whoever finds the
attempt dead settles each target by its mark (``settle``); when all of them are switched, the restore has succeeded.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.management import call_command
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError

from django_snapshots import journal, runs, schedules, signals
from django_snapshots import restore as restoring
from django_snapshots import undo as undoing
from django_snapshots.artifacts.capabilities import settle_of
from django_snapshots.conf import Settings
from django_snapshots.connectors.derived import beside
from django_snapshots.exceptions import SnapshotError
from django_snapshots.execution.errors import explained
from django_snapshots.execution.expiry import expire, forget_copies
from django_snapshots.execution.ledger import Ledger
from django_snapshots.execution.place import told_without_locks
from django_snapshots.manifest import Snapshot
from django_snapshots.models import Kind
from django_snapshots.plan import Request
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.replaced import Outcome, SnapshotUnsettled
from django_snapshots.switching import Change

Write = Callable[[Mapping[str, Any]], None]


class Bookkeeping:
    """Keeps the ledger of one attempt; *write* puts it into the journal, and raises if the right to that is lost."""

    def __init__(self, name: str, write: Write) -> None:
        self._write = write
        self.ledger = Ledger(name=name)

    def announce(self, changes: Sequence[Change]) -> None:
        """Nothing is built before this is written."""
        self._keep(self.ledger.announced(changes))

    def before_switch(self, changes: Sequence[Change]) -> None:
        """Reads what ``make_fit`` needs of the databases as they are."""
        recorded = journal.recorded_migrations(_databases(changes))
        self._keep(self.ledger.with_migrations(recorded))

    def note(self, mark: str, facts: Mapping[str, Any]) -> None:
        """See ``RestoreRequest.note``."""
        self._keep(self.ledger.noted(mark, facts))

    def saved(self, mark: str, snapshot: Snapshot) -> None:
        """The safety copy of a target is there."""
        self._keep(self.ledger.saved(mark, snapshot.name))

    def switch(self) -> None:
        """From here on only its mark can tell what became of a target."""
        self._keep(self.ledger.at_the_switch())

    def all_switched(self) -> None:
        """From here on the restore has taken place, whatever comes."""
        self._keep(self.ledger.at_the_end())

    def going_back(self) -> None:
        """Raises if the right to bring back what was switched is another attempt's by now."""
        self._keep(self.ledger)

    def _keep(self, ledger: Ledger) -> None:
        self._write(ledger.to_record())
        self.ledger = ledger


def restore_with_journal(
    settings: Settings,
    request: Request,
    processes: Processes,
    *,
    kind: Kind = Kind.RESTORE,
    run: str | None = None,
    token: int = 1,
    label: str = "",
    write: Write = lambda _record: None,
    observe: Callable[[int], None] = lambda _: None,
    before_switch: Callable[[], None] = lambda: None,
    hold: Callable[[Sequence[Change]], None] = lambda _: None,
    recorded: bool = True,
) -> dict[str, Any]:
    """Restore, or undo a restore; return the report as plain JSON. *hold* sees to it, before anything is built, that
    nobody else works with what is replaced. *label* names it to servers; without one, as without a journal, it has one
    of its own too, by which a sweep tells whether it is alive. *recorded* says whether the run is in a journal, and has
    locks there. Raises ``SnapshotError``."""
    books = Bookkeeping(request.name or request.undo or "", write)

    hears = Listeners(name=request.name or request.undo or "", kind=kind, run=run or uuid.uuid4().hex)

    def announce(changes: Sequence[Change]) -> None:
        hold(changes)
        books.announce(changes)

    def close_the_way_back() -> None:
        hears.before(books.ledger)
        books.switch()
        before_switch()

    def after_switch(changes: Sequence[Change]) -> None:
        books.all_switched()
        make_fit(_databases(changes), books.ledger.recorded, migrate=request.migrate)
        hears.after(books.ledger)

    attempt = restoring.RestoreAttempt(
        request=request,
        processes=processes,
        label=label or f"django-snapshots {hears.run}-0-{token}",
        run=hears.run,
        token=token,
        preserve_tables=runs.tables(),
        announce=announce,
        note=books.note,
        safety_taken=books.saved,
        before_switch=books.before_switch,
        point_of_no_return=close_the_way_back,
        going_back=books.going_back,
        after_switch=after_switch,
        observe=observe,
    )
    meet_derived_aliases()
    try:
        report = _undone(settings, attempt) if kind == Kind.UNDO else restoring.restore(settings, attempt).to_json()
    except SnapshotUnsettled:
        raise  # whoever settles it looks
    except Exception:
        with contextlib.suppress(Exception):  # it stays, and costs nothing but room
            _forget_copies_of_nothing(settings, books.ledger, uuid.UUID(hears.run), recorded=recorded)
        raise
    with contextlib.suppress(Exception):  # all is restored; the collector comes again
        expire(settings, uuid.UUID(hears.run), recorded=recorded)
    return hears.told(report)


def _forget_copies_of_nothing(settings: Settings, ledger: Ledger, run: uuid.UUID, *, recorded: bool) -> None:
    """Remove the safety copies of those targets that are as they were, which their own proof tells."""
    copied = [entry for entry in ledger.entries if entry.safety and entry.provable]
    untouched = [
        entry.safety
        for entry in copied
        if settle_of(settings.kind(entry.type), entry.subject, entry.mark, entry.noted) is Outcome.BEFORE
    ]
    forget_copies(settings, run, untouched, recorded=recorded)


@dataclass(kw_only=True)
class Listeners:
    """The project's receivers of ``signals``, and what they raised when it was too late to stop."""

    name: str
    kind: str
    run: str
    complaints: list[str] = field(default_factory=list)

    def before(self, ledger: Ledger) -> None:
        """Raises ``SnapshotError`` for whatever a receiver raises."""
        try:
            signals.pre_restore.send(sender=None, **self._words(ledger))
        except SnapshotError:
            raise
        except Exception as error:
            raise explained(error, "a receiver of pre_restore, so nothing was changed") from error

    def after(self, ledger: Ledger) -> None:
        """Never raises."""
        for receiver, answer in signals.post_restore.send_robust(sender=None, **self._words(ledger)):
            if isinstance(answer, Exception):
                who = getattr(receiver, "__qualname__", type(receiver).__name__)
                self.complaints.append(f"The receiver {who} of post_restore failed: {redact(str(answer))}")

    def told(self, report: dict[str, Any]) -> dict[str, Any]:
        """*report* with what the receivers raised."""
        return {**report, "notes": [*report["notes"], *self.complaints]}

    def _words(self, ledger: Ledger) -> dict[str, Any]:
        targets = [(entry.type, entry.subject) for entry in ledger.entries]
        return {"name": self.name, "kind": str(self.kind), "run": self.run, "targets": targets}


def make_fit(aliases: Sequence[str], recorded: Mapping[str, Sequence[str]], *, migrate: bool = False) -> None:
    """Bring the journal's own records, and the schedules, in the databases of *aliases* in line with what is there;
    with *migrate* also their tables.

    Raises ``SnapshotUnsettled`` if a server is away or busy: then whoever settles the restore does it.
    """
    try:
        journal.make_fit(aliases, {alias: list(names) for alias, names in recorded.items()})
        for alias in aliases:
            schedules.write_in(alias)
    except (OperationalError, InterfaceError) as error:
        raise SnapshotUnsettled(
            "Everything is restored, but the journal's own records in it could not be made to fit yet "
            f"({redact(str(error)).strip()}). If no worker does it, run `manage.py migrate`."
        ) from error
    except DatabaseError as error:
        raise SnapshotError(
            "Everything is restored, but the journal's own records in it could not be made to fit "
            f"({error}). Run `manage.py migrate` and look at django_migrations."
        ) from error
    except SnapshotError:
        raise
    except Exception as error:  # a router's or a receiver's of the project: it would be the same at every attempt
        raise SnapshotError(
            "Everything is restored, but the journal's own records in it could not be made to fit: "
            f"{type(error).__name__}: {redact(str(error)).strip()}. Remove the cause and run `manage.py migrate`."
        ) from error
    for alias in aliases if migrate else ():
        _migrate(alias)


def _migrate(alias: str) -> None:
    try:
        call_command("migrate", database=alias, interactive=False, verbosity=0)
    except Exception as error:
        raise SnapshotError(
            f"Everything is restored, but `manage.py migrate --database {alias}` failed: {redact(str(error)).strip()}. "
            "Remove the cause and run it again, or undo the restore."
        ) from error


def preflight(settings: Settings, request: Request) -> dict[str, Any]:
    """What stands in the way of a restore, as plain JSON; touches nothing. Raises ``SnapshotError`` only where not
    even that can be told."""
    with Processes() as processes:
        attempt = restoring.RestoreAttempt(request=request, processes=processes, preserve_tables=runs.tables())
        report = restoring.look(settings, attempt).to_json()
    return {**report, "warnings": [*report["warnings"], *told_without_locks(settings)]}


def meet_derived_aliases() -> None:
    """Make the databases that restores were asked to fill beside the originals known to this process."""
    if not runs.available():
        return
    for request in runs.requests_with(Kind.RESTORE, "database_names"):
        for alias, name in (request.get("database_names") or {}).items():
            with contextlib.suppress(SnapshotError):
                beside((request.get("into") or {}).get(alias, alias), name)


def _undone(settings: Settings, attempt: restoring.RestoreAttempt) -> dict[str, Any]:
    # Looked for once more: a server that answered when the run began may be away now.
    undone, states = undo_states(settings, attempt.request)
    return undoing.undo(settings, attempt, undone, states).to_json()


def undo_states(settings: Settings, request: Request) -> tuple[str, list[undoing.Kept]]:
    """The restore that an undo is of, and every state that it puts back.

    Raises ``SnapshotNotFoundError``, also if there may be more of it than is found: half of a restore is not taken back
    unless *request* names that half.
    """
    meet_derived_aliases()
    run, states, missed = undoing.chosen(settings, request, _changed_nothing)
    undoing.require_all(run, states, request, _replaced_by(run), missed)
    return run, states


def _changed_nothing(found: set[str]) -> set[str]:
    """Those of the runs *found* that have ended before their first switch, as far as the journal knows them."""
    if not runs.available():
        return set()
    return {run.hex for run in runs.changed_nothing({uuid.UUID(run) for run in found})}


def _replaced_by(run: str) -> list[str] | None:
    """What the restore or undo *run* has kept, as the journal tells it; ``None`` if that doesn't know it."""
    result = runs.result_of(uuid.UUID(run)) if runs.available() else None
    if result is None:
        return None
    return [str(item) for key in ("kept", "safety", "targets") for item in result.get(key) or ()]


def _databases(changes: Sequence[Change]) -> list[str]:
    return [change.subject for change in changes if change.type == "database"]
