"""Does a request in this process where there is no journal: a bare machine, no database."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django_snapshots import backup, parallel, runs
from django_snapshots.catalog import Catalog, StoredArtifact, summary
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotError,
)
from django_snapshots.execution.begin import plan_with_free_name
from django_snapshots.execution.errors import explained
from django_snapshots.execution.finish import withdraw_objects
from django_snapshots.execution.hooks import Hooks
from django_snapshots.execution.ledger import Ledger
from django_snapshots.execution.operations import delete_snapshot, require_journal
from django_snapshots.execution.proving import Proving
from django_snapshots.execution.restoring import restore_with_journal
from django_snapshots.execution.settle import Settling
from django_snapshots.manifest import Snapshot
from django_snapshots.models import Kind
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan
from django_snapshots.processes import Processes
from django_snapshots.replaced import SnapshotUnsettled

logger = logging.getLogger("django_snapshots")


def request_without_journal(kind: Kind, request: Request, hooks: Hooks) -> dict[str, Any]:
    settings = get_settings()
    if kind == Kind.SNAPSHOT:
        return summary(_snapshot_without_journal(settings, request, hooks))
    if kind in (Kind.VERIFY, Kind.DRILL):
        return _prove(settings, kind, request, hooks)
    if kind == Kind.PRUNE:
        require_journal()
    if kind == Kind.DELETE:
        delete_snapshot(request.name or "")
        return {"deleted": request.name}
    return _restore(settings, kind, request, hooks)


def _restore(settings: Settings, kind: Kind, request: Request, hooks: Hooks) -> dict[str, Any]:
    """Nobody settles later what can't be told at once, and nobody else knows which targets belong together: that is
    tried here, once, also where the process is told to end."""
    run, record = uuid.uuid4().hex, dict[str, Any]()
    try:
        with Processes() as processes:
            return restore_with_journal(
                settings,
                request,
                processes,
                kind=kind,
                run=run,
                label=_label(run, 1),
                write=record.update,
                observe=lambda count: hooks.moved(kind, count),
                recorded=False,
            )
    except BaseException as error:
        ledger = Ledger.of(record)
        known = isinstance(error, SnapshotError) and not isinstance(error, SnapshotUnsettled)
        if ledger is None or not ledger.switching or known:
            raise
        if isinstance(error, Exception):
            return _settled(settings, kind, request, run, ledger.because(str(explained(error, str(kind)))))
        ledger = ledger.because(f"The {kind} was told to end in its middle.")
        try:
            # Migrations would begin anew, and may be what it was told to end for.
            _settled(settings, kind, replace(request, migrate=False), run, ledger)
        except Exception as told:  # noqa: BLE001 - what it was told stays the reason of its end
            logger.warning("%s", explained(told, str(kind)))
        else:
            more = " Run `manage.py migrate`: its migrations may not have ended." if request.migrate else ""
            logger.warning(
                "The %s was told to end when everything was switched: it has taken place.%s `manage.py snapshots undo "
                "%s` takes it back.",
                kind,
                more,
                run,
            )
        raise


def _settled(settings: Settings, kind: Kind, request: Request, run: str, ledger: Ledger) -> dict[str, Any]:
    with Processes() as processes:
        settling = Settling(
            settings=settings,
            processes=processes,
            labels=[_label(run, 1)],
            label=_label(run, 2),
            run=run,
            token=2,
            migrate=request.migrate,
            cause=ledger.cause,
            recorded=False,
        )
        try:
            return settling.settle(ledger, kind)
        except SnapshotUnsettled as error:
            raise SnapshotUnsettled(
                f"{error} Without the journal nobody tries again by himself: when all is there again, run `manage.py "
                "snapshots sweep --without-journal`. Then `manage.py snapshots undo --list` shows what of the run "
                f"{run} was replaced, and `manage.py snapshots undo {run}` brings that back."
            ) from error


def _label(run: str, token: int) -> str:
    return f"django-snapshots {run}-0-{token}"


def _prove(settings: Settings, kind: Kind, request: Request, hooks: Hooks) -> dict[str, Any]:
    run = uuid.uuid4()
    with Processes() as processes:
        proving = Proving(
            settings=settings,
            processes=processes,
            run=run,
            # Its own: by it a sweep tells whether it is alive.
            labels=lambda token: _label(run.hex, token),
            observe=lambda count: hooks.moved(kind, count),
            recorded=False,
        )
        return proving.verify(request) if kind == Kind.VERIFY else proving.drill(request)


def _snapshot_without_journal(settings: Settings, request: Request, hooks: Hooks) -> Snapshot:
    storage_id = Catalog(settings.storage).storage_id()
    plan = plan_with_free_name(settings, request, uuid.uuid4().hex, lambda _: False)
    share = _Share(hooks=hooks)

    def work_on(step: PlannedStep, moment_fixed: Callable[[], None]) -> None:
        share.work(settings, plan, step, moment_fixed)

    try:
        parallel.run(plan.steps, work_on, at_once=settings.parallel, stop=share.stop)
        if share.errors:
            raise share.errors[0]
        stored = [share.stored[step.position] for step in plan.steps]
        return backup.publish(settings, plan, stored, storage_id=storage_id, allow_empty=request.allow_empty)
    except BaseException:
        withdraw_objects(settings, plan.name, plan.run, share.filenames)
        raise


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What the threads of a run without a journal share; each adds its own, which is atomic."""

    hooks: Hooks
    stop: parallel.Stop = field(default_factory=parallel.Stop)
    stored: dict[int, StoredArtifact] = field(default_factory=dict)
    filenames: list[str] = field(default_factory=list)
    errors: list[SnapshotError] = field(default_factory=list)

    def work(self, settings: Settings, plan: SnapshotPlan, step: PlannedStep, moment_fixed: Callable[[], None]) -> None:
        what = f"{step.type} {step.subject}"

        def opened(filename: str, _moment: datetime) -> None:
            self.filenames.append(filename)
            moment_fixed()

        def moved(count: int) -> None:
            if self.errors:
                raise SnapshotCancelled("Another artifact of this snapshot has failed.")
            self.hooks.moved(what, count)

        try:
            with self.stop.attempt() as processes:
                attempt = backup.Attempt(
                    plan=plan,
                    step=step,
                    token=1,
                    processes=processes,
                    exclude_tables=runs.tables(),
                    exclude_data=settings.data_left_out(step.type, step.subject),
                    observer=backup.Observer(opened=opened, moved=moved),
                )
                self.stored[step.position] = backup.dump_artifact(settings, attempt)
        except Exception as error:  # noqa: BLE001 - the first one is raised once all threads have ended
            self.errors.append(explained(error, what))
