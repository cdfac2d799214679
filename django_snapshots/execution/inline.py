"""Does all of a request in this process."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from django_snapshots import parallel, runs
from django_snapshots.catalog import Catalog, Entry
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotError,
)
from django_snapshots.execution.begin import launch, settle_dead
from django_snapshots.execution.errors import explained
from django_snapshots.execution.finish import finish, outcome
from django_snapshots.execution.hooks import Hooks
from django_snapshots.execution.place import list_entries, told_without_locks
from django_snapshots.execution.without_journal import request_without_journal
from django_snapshots.execution.work import work
from django_snapshots.manifest import Snapshot
from django_snapshots.models import FINAL_STATES, Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.storage.protocols import SnapshotStorage

logger = logging.getLogger("django_snapshots")

_POLL_SECONDS = 0.5


def create_snapshot(
    name: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    metadata: dict[str, Any] | None = None,
    allow_empty: bool = False,
    wait: float | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> Snapshot:
    """Take a snapshot in this process, several artifacts at once, and return it.

    *name* defaults to ``SNAPSHOTS["NAME"]``, *databases* and *artifacts* to what the settings include. *allow_empty*
    takes one also where it is empty and the snapshot before wasn't. With *wait*,
    seconds, it waits for another run that has one of its databases. Raises ``SnapshotError``; then nothing is listed.
    """
    request = Request.from_json(
        {
            "name": name,
            "databases": databases,
            "artifacts": artifacts,
            "metadata": metadata or {},
            "allow_empty": allow_empty,
            "wait": wait,
        }
    )
    result = run_request(Kind.SNAPSHOT, request, requester=requester, hooks=hooks)
    return Catalog(get_settings().storage).get(result["name"])


def list_snapshots(storage: SnapshotStorage | None = None) -> list[Entry]:
    """Everything in *storage*, or in ``SNAPSHOTS["STORAGE"]``, that has a manifest, the newest first.

    Entries whose manifest can't be read have an ``error`` instead of a ``snapshot``. The project's own storage is
    believed to be empty only if it is the one that the journal knows. Raises ``SnapshotStorageError``.
    """
    return list_entries(get_settings()) if storage is None else Catalog(storage).entries()


def restore_snapshot(
    name: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] = (),
    elsewhere: bool = False,
    into: Mapping[str, str] | None = None,
    database_names: Mapping[str, str] | None = None,
    tables: Mapping[str, Sequence[str]] | None = None,
    merge: bool = False,
    migrate: bool = False,
    no_owner: bool = False,
    wait: float | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest, in this process; return the report as plain JSON.

    *databases* and *artifacts* name parts of it. *confirm* holds the name of every target that isn't empty and may be
    replaced. *elsewhere* allows a snapshot of another project or environment. *into* maps aliases of the snapshot to
    the aliases whose databases are replaced instead, *database_names* to names of other databases on their servers.
    *tables* maps aliases to the only tables whose rows are replaced; then nothing else is restored.
    *merge* leaves media files in place that the snapshot doesn't have. *migrate* runs the migrations that the
    restored databases lack, *no_owner* leaves out owners and grants. With *wait*, seconds, it waits for another run
    that has one of them. What is replaced is kept for ``SNAPSHOTS["SAFETY_KEEP"]`` seconds: ``undo_restore``. Needs
    neither the journal nor, for an artifact that is no database, a database.
    Raises ``SnapshotError``; its message says what state each target is in.
    """
    request = Request.from_json(
        {
            "name": name,
            "databases": databases,
            "artifacts": artifacts,
            "confirm": confirm,
            "elsewhere": elsewhere,
            "into": into,
            "database_names": database_names,
            "tables": tables,
            "merge": merge,
            "migrate": migrate,
            "no_owner": no_owner,
            "wait": wait,
        }
    )
    return run_request(Kind.RESTORE, request, requester=requester, hooks=hooks)


def undo_restore(
    run: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] = (),
    wait: float | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Put back, in this process, what the restore *run*, or the latest, has replaced; return the report as plain JSON.

    *run* is the restore's id, or the beginning of it. *databases*, aliases as they were restored into, and *artifacts*
    name parts of it, which alone are put back then; without them it is all of the restore or nothing. *confirm* holds
    the name of every target that is replaced. What is there now is kept in its turn, so that the undo can be undone.
    Raises ``SnapshotError``.
    """
    request = Request.from_json(
        {"undo": run, "databases": databases, "artifacts": artifacts, "confirm": confirm, "wait": wait}
    )
    return run_request(Kind.UNDO, request, requester=requester, hooks=hooks)


def verify_snapshot(
    name: str | None = None,
    *,
    level: int = 2,
    wait: float | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Verify the snapshot called *name*, or the latest, in this process; return the report as plain JSON.

    Level 1 looks at the manifest and at every file's presence and length, level 2 at every stored byte's digest, level
    3 into the content: that it unpacks to what was dumped, and that its format is whole. With *wait*, seconds, it waits
    for a run that deletes it. The result is kept beside the snapshot, where the storage can be written to.
    Raises ``SnapshotIntegrityError`` that names everything that is wrong.
    """
    request = Request.from_json({"name": name, "level": level, "wait": wait})
    return run_request(Kind.VERIFY, request, requester=requester, hooks=hooks)


def drill_snapshot(
    name: str | None = None,
    *,
    wait: float | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest, into scratch databases in this process, look at what came of
    it, and throw it away; return the report as plain JSON.

    Every exact row count is compared with the manifest, ``SNAPSHOTS["DRILL_CHECKS"]`` are called, and migrations and
    files that rows point at are compared. No target is touched. With *wait*, seconds, it waits for a run that deletes
    the snapshot. The result is kept beside it. Raises ``SnapshotDrillError`` that names everything that is wrong.
    """
    request = Request.from_json({"name": name, "wait": wait})
    return run_request(Kind.DRILL, request, requester=requester, hooks=hooks)


def run_request(
    kind: Kind, request: Request, *, requester: runs.Requester | None = None, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Do all of *request* in this process, in the journal if there is one; return its result or raise its error."""
    request = replace(request, granted=kind in runs.SETTLED)
    if runs.available():
        return run_inline(kind, request, requester=requester, hooks=hooks)
    # Not refused: a restore on a machine where nothing answers, or of the journal's own database, goes on without it.
    for sentence in told_without_locks(get_settings()):
        logger.warning("%s", sentence)
    try:
        return request_without_journal(kind, request, hooks or Hooks())
    except SnapshotError:
        raise
    except Exception as error:
        raise explained(error, str(kind)) from error


def run_inline(
    kind: Kind,
    request: Request,
    *,
    run_id: uuid.UUID | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """A whole run in this process, in the journal; return its result or raise its error."""
    runs.require_no_transaction()
    run, _ = runs.begin(kind, request, run=run_id, requester=requester, inline=True)
    Run.objects.using(runs.alias()).filter(pk=run.pk, state=State.QUEUED).update(inline=True)
    run.inline = True
    hooks = hooks or Hooks()
    try:
        _work_on_all(launch(run, waits=hooks.waits), hooks)
    except BaseException:
        # Interrupted: what was begun has ended all the same; the rest, and the run, end with it.
        runs.give_up(run, SnapshotError(parallel.INTERRUPTED))
        finish(run.pk, hooks)
        raise
    # A sweep, or whoever cancels, may have come first: its end is the run's; if it dies of it, this one's turn comes.
    while finish(run.pk, hooks) is None and runs.is_being_finished(run.pk):
        time.sleep(_POLL_SECONDS)
    _require_settled(run)
    return outcome(runs.get(run.pk))


def _require_settled(run: Run) -> None:
    """Raise ``SnapshotUnsettled`` if this process could not tell what became of a target: the run goes on then."""
    for step in runs.steps_of(run):
        if runs.is_unsettled(step.pk):
            raise SnapshotUnsettled(
                f"{step.error} Run {run.pk} has not ended: a worker, or `manage.py snapshots sweep`, finds out what "
                "became of it."
            )


def _work_on_all(steps: Sequence[Step], hooks: Hooks) -> None:
    rows = {step.position: step.pk for step in steps}
    stop = parallel.Stop()

    def work_on(step: PlannedStep, moment_fixed: Callable[[], None]) -> None:
        work(
            rows[step.position],
            replace(hooks, moment_fixed=lambda _run, _phase: moment_fixed(), attempt=stop.attempt),
        )

    planned = [
        PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase) for step in steps
    ]
    parallel.run(planned, work_on, at_once=get_settings().parallel, stop=stop)


def cancel_run(run: uuid.UUID | str, *, by: str = "") -> Run:
    """``django_snapshots.cancel_run``, but for telling whoever waits for the task's result."""
    found = runs.find(str(run))
    runs.request_cancel(found.pk, by)
    finish(found.pk)
    return runs.get(found.pk)


def give_up_run(run: uuid.UUID | str, *, by: str = "") -> Run:
    """End a restore or undo of which it can't be told what became of its targets, and free what it has locked.

    For an operator who has looked at the targets. Raises ``SnapshotError`` if nothing waits to be settled, or somebody
    is settling it.
    """
    found = runs.find(str(run))
    # One look before: it ends what an attempt that only sleeps could still change, where its target answers.
    if found.kind in runs.SETTLED and found.state not in FINAL_STATES and settle_dead(found):
        return runs.get(found.pk)
    runs.give_up_settling(found.pk, by)
    finish(found.pk)
    return runs.get(found.pk)


def progress(run: Run) -> dict[str, Any]:
    """How far a run is: plain JSON."""
    steps = runs.steps_of(run)
    return {
        "run": str(run.pk),
        "kind": run.kind,
        "name": run.name,
        "steps": len(steps),
        "ended": sum(step.state in FINAL_STATES for step in steps),
        "bytes": sum(step.content_bytes for step in steps),
    }
