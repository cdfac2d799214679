"""Gives a new run its steps."""

from __future__ import annotations

from collections.abc import Callable

from django_snapshots import backup, runs
from django_snapshots.catalog import Catalog, Entry, label
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
)
from django_snapshots.execution.errors import explained
from django_snapshots.manifest import check_name
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan, has_timestamp, next_moment, plan_snapshot


def launch(run: Run) -> list[Step]:
    """Give a run its steps, or its end. One whose message came twice keeps the steps that it has.

    Raises ``SnapshotError``; then the run has ended with it.
    """
    failure: SnapshotError
    try:
        if run.state == State.QUEUED:
            return prepare(run)
        return runs.steps_of(run)
    except SnapshotError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - a storage or a NAME of the project's own may raise what it likes
        failure = explained(error, f"{run.kind} {run.name}".strip())
    except BaseException:
        runs.refuse(run, SnapshotError("It was interrupted before it began."))
        raise
    if runs.refuse(run, failure):
        raise failure
    return runs.steps_of(run)


def prepare(run: Run) -> list[Step]:
    """Give a new run its steps. Raises ``SnapshotError`` for a request that can't be filled."""
    request = Request.from_json(run.request)
    if run.kind == Kind.SNAPSHOT:
        return _prepare_snapshot(run, request)
    if run.kind == Kind.DELETE and not request.name:
        raise SnapshotConfigurationError(
            "A delete takes the name of the snapshot; the latest is not meant by leaving it out."
        )
    if run.kind == Kind.PRUNE:
        step = PlannedStep(position=0, type=run.kind, subject=request.like or "snapshots", phase=0)
        return runs.start(run, [step], name="", storage_id="", storage_label="", reserve=False)
    # The latest is looked up once: every attempt works on the same one, and nobody can delete it meanwhile.
    name = check_name(request.name) if request.name else Catalog(get_settings().storage).latest().name
    step = PlannedStep(position=0, type=run.kind, subject=name, phase=0)
    return runs.start(run, [step], name=name, storage_id="", storage_label="", reserve=False)


def _prepare_snapshot(run: Run, request: Request) -> list[Step]:
    settings = get_settings()
    place = place_of(settings)
    storage_id = Catalog(settings.storage).storage_id(expected=runs.known_storage_id(place) if place else None)
    while True:
        plan = plan_with_free_name(
            settings, request, run.pk.hex, lambda name: runs.reservations(storage_id, name, besides=run.pk)
        )
        try:
            return runs.start(run, plan.steps, name=plan.name, storage_id=storage_id, storage_label=place, reserve=True)
        except SnapshotExistsError:
            # Another run took the name after the look; another moment gives another name.
            if not has_timestamp(settings, request):
                raise


def place_of(settings: Settings) -> str:
    """Where the storage is, if it can tell; only then can it be missed when it is somewhere else."""
    return str(getattr(settings.storage, "label", ""))


def list_entries(settings: Settings) -> list[Entry]:
    """Everything in the storage that has a manifest, the newest first.

    That there is nothing is believed only of the storage that the journal knows: a disk that isn't mounted looks like
    an empty one. Raises ``SnapshotStorageError``.
    """
    catalog = Catalog(settings.storage)
    entries, place = catalog.entries(), place_of(settings)
    if not entries and place and runs.available():
        catalog.storage_id(expected=runs.known_storage_id(place), create=False)
    return entries


def plan_with_free_name(
    settings: Settings, request: Request, run: str, reserved: Callable[[str], bool]
) -> SnapshotPlan:
    catalog, moment = Catalog(settings.storage), backup.utc_now()
    while True:
        plan = plan_snapshot(settings, request, run=run, now=moment)
        if not catalog.exists(plan.name) and not reserved(plan.name):
            return plan
        if not has_timestamp(settings, request):
            raise SnapshotExistsError(
                f"A snapshot {plan.name!r} exists already in {label(settings.storage)}, or is being made; "
                "choose another name or delete it first."
            )
        moment = next_moment(moment)
