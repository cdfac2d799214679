"""Gives a new run its steps, its name and its locks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from django.utils import timezone

from django_snapshots import backup, runs
from django_snapshots import restore as restoring
from django_snapshots.artifacts.capabilities import identity_of
from django_snapshots.catalog import Catalog, label
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
)
from django_snapshots.execution.errors import explained
from django_snapshots.execution.finish import finish
from django_snapshots.execution.place import place_of
from django_snapshots.execution.restoring import undo_states
from django_snapshots.execution.work import work
from django_snapshots.manifest import check_name
from django_snapshots.models import FINAL_STATES, Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan, has_timestamp, next_moment, plan_snapshot

_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.5


def launch(run: Run, *, waits: Callable[[str], None] = lambda _why: None) -> list[Step]:
    """Give a run its steps, or its end. One whose message came twice keeps the steps that it has.

    A run that is asked to wait for another one, and that workers do, stays queued and gets none yet; an inline one is
    waited for here, and *waits* hears why. Raises
    ``SnapshotError``; then the run has ended with it.
    """
    failure: SnapshotError
    try:
        if run.state == State.QUEUED:
            return _prepare_or_wait(run, waits)
        return runs.steps_of(run)
    except SnapshotError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - a storage or a NAME of the project's own may raise what it likes
        failure = explained(error, f"{run.kind} {run.name}".strip())
    except BaseException:
        if run.inline:
            runs.refuse(run, SnapshotError("It was interrupted before it began."))
        raise
    if runs.refuse(run, failure):
        raise failure
    return runs.steps_of(run)


def _prepare_or_wait(run: Run, waits: Callable[[str], None]) -> list[Step]:
    while True:
        try:
            return _prepare_unless_in_the_way(run)
        except runs.InTheWay as rival:
            patience = Request.from_json(run.request).wait
            is_over = (timezone.now() - run.created_at).total_seconds() >= patience
            if is_over or not isinstance(rival.error, SnapshotBusyError):
                raise rival.error from None
            why = rival.why()
        if not run.inline:
            runs.wait(run, min(_WAIT_SECONDS, patience), why)
            return []
        runs.wait(run, _POLL_SECONDS, why)
        waits(why)
        time.sleep(_POLL_SECONDS)
        run.refresh_from_db(using=runs.alias())
        if run.state in FINAL_STATES:
            return []


def prepare(run: Run) -> list[Step]:
    """Give a new run its steps. Raises ``SnapshotError`` for a request that can't be filled, and
    ``SnapshotBusyError`` that names the run in its way."""
    try:
        return _prepare_unless_in_the_way(run)
    except runs.InTheWay as rival:
        raise rival.error from None


def _prepare_unless_in_the_way(run: Run) -> list[Step]:
    while True:
        try:
            return _prepare(run, Request.from_json(run.request))
        except runs.InTheWay as rival:
            if not settle_dead(rival.run):
                raise


def settle_dead(run: Run) -> bool:
    """Bring a run to its end if nobody works on it any more; whether it has ended."""
    ended = runs.end_dead(run)
    ended += [run_id for step in runs.unsettled(run) if (run_id := work(step)) is not None]
    for run_id in dict.fromkeys(ended):
        finish(run_id)
    run.refresh_from_db(using=runs.alias())
    return run.state in FINAL_STATES


def _prepare(run: Run, request: Request) -> list[Step]:
    if run.kind == Kind.SNAPSHOT:
        return _prepare_snapshot(run, request)
    if run.kind == Kind.DELETE and not request.name:
        raise SnapshotConfigurationError(
            "A delete takes the name of the snapshot; the latest is not meant by leaving it out."
        )
    if run.kind == Kind.PRUNE:
        step = PlannedStep(position=0, type=run.kind, subject=request.like or "snapshots", phase=0)
        return runs.start(run, [step], name="", storage_id="", storage_label="", reserve=False)
    settings = get_settings()
    if run.kind == Kind.UNDO:
        return _prepare_undo(run, settings, request)
    # The latest is looked up once: every attempt works on the same one, and nobody can delete it meanwhile.
    name = check_name(request.name) if request.name else Catalog(settings.storage).latest().name
    step = PlannedStep(position=0, type=run.kind, subject=name, phase=0)
    wanted = [runs.snapshot_lock(name, exclusive=run.kind == Kind.DELETE)]
    if run.kind == Kind.RESTORE:
        _, records = restoring.chosen(settings, Request.from_json({**run.request, "name": name}))
        wanted += [
            lock
            for record in records
            for lock in _physical(settings, record.type, restoring.subject_of(request, record), exclusive=True)
        ]
    return runs.start(run, [step], name=name, storage_id="", storage_label="", reserve=False, wanted=wanted)


def _prepare_undo(run: Run, settings: Settings, request: Request) -> list[Step]:
    undone, states = undo_states(settings, request)
    # From here on it is the one that was seen: another restore may end meanwhile.
    runs.remember(run, {**run.request, "undo": undone})
    wanted = [lock for item in states for lock in _physical(settings, item.type, item.subject, exclusive=True)]
    # A safety copy may be read until the last switch; nobody deletes it meanwhile.
    wanted += [runs.snapshot_lock(item.snapshot, exclusive=False) for item in states if item.snapshot]
    step = PlannedStep(position=0, type=run.kind, subject=undone, phase=0)
    return runs.start(run, [step], name="", storage_id="", storage_label="", reserve=False, wanted=wanted)


def _physical(settings: Settings, artifact_type: str, subject: str, *, exclusive: bool) -> Iterator[runs.Wanted]:
    """The lock on what an artifact physically is, if it is anything that can be shared."""
    try:
        identity = identity_of(settings.kind(artifact_type), subject)
    except Exception:  # noqa: BLE001 - an engine or a kind of somebody else's raises what it likes
        return  # whoever works on it says what is wrong
    what = artifact_type if artifact_type == subject else f"{artifact_type} {subject}"
    yield runs.Wanted(key=identity, what=f"{what[0].upper()}{what[1:]}", exclusive=exclusive)


def _prepare_snapshot(run: Run, request: Request) -> list[Step]:
    settings = get_settings()
    place = place_of(settings)
    storage_id = Catalog(settings.storage).storage_id(expected=runs.known_storage_id(place) if place else None)

    def reserved(name: str) -> bool:
        rival = runs.reserved_by(storage_id, name, besides=run.pk)
        return rival is not None and not settle_dead(rival)

    while True:
        plan = plan_with_free_name(settings, request, run.pk.hex, reserved)
        # Databases are dumped by one run at a time; files may be read by any number.
        wanted = [
            lock
            for step in plan.steps
            for lock in _physical(settings, step.type, step.subject, exclusive=step.type == "database")
        ]
        try:
            return runs.start(
                run,
                plan.steps,
                name=plan.name,
                storage_id=storage_id,
                storage_label=place,
                reserve=True,
                wanted=[*wanted, runs.snapshot_lock(plan.name, exclusive=True)],
            )
        except SnapshotExistsError:
            # Another run took the name after the look; another moment gives another name.
            if not has_timestamp(settings, request):
                raise


def plan_with_free_name(
    settings: Settings, request: Request, run: str, reserved: Callable[[str], bool]
) -> SnapshotPlan:
    """A plan whose name nothing has: no snapshot, and, as *reserved* says, no live run."""
    catalog, moment = Catalog(settings.storage), backup.utc_now()
    while True:
        plan = plan_snapshot(settings, request, run=run, now=moment)
        # In this order: a run that publishes the name in between has it no longer reserved, but has a manifest there.
        if not reserved(plan.name) and not catalog.exists(plan.name):
            return plan
        if not has_timestamp(settings, request):
            raise SnapshotExistsError(
                f"A snapshot {plan.name!r} exists already in {label(settings.storage)}, or is being made; "
                "choose another name or delete it first."
            )
        moment = next_moment(moment)
