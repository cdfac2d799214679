"""One engine behind tasks, admin, command and code: begins runs, works on steps, finishes runs.

The same three moves serve workers, each for its own step, and one process that does it all inline. Where the journal
can't be written (a bare machine, no database) an inline run goes on without it.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from time import monotonic
from typing import Any

from django.db import Error as DatabaseError
from django.db import connections
from django.utils import timezone

from django_snapshots import backup, journal, parallel, runs, schedules
from django_snapshots import prune as pruning
from django_snapshots import restore as restoring
from django_snapshots import verify as verifying
from django_snapshots.catalog import Catalog, Entry, StoredArtifact, label, summary
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot, check_name
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan, has_timestamp, next_moment, plan_snapshot
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.retention import Policy

logger = logging.getLogger("django_snapshots")

NOTE_SECONDS = 2.0
"""How often an attempt writes its progress and looks whether it must end."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller wants to hear while work goes on."""

    moment_fixed: Callable[[uuid.UUID, int], None] = lambda _run, _phase: None
    """A step of this run and phase has fixed its moment, or ended without; the next phase may have become ready."""
    moved: Callable[[str, int], None] = lambda _what, _count: None
    """So many bytes of this subject went by."""
    attempt: Callable[[], AbstractContextManager[Processes]] = Processes
    """Makes what holds the programs of one attempt; whoever keeps it can end them."""


# Begin


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
    place = _place(settings)
    storage_id = Catalog(settings.storage).storage_id(expected=runs.known_storage_id(place) if place else None)
    while True:
        plan = _plan_with_free_name(
            settings, request, run.pk.hex, lambda name: runs.reservations(storage_id, name, besides=run.pk)
        )
        try:
            return runs.start(run, plan.steps, name=plan.name, storage_id=storage_id, storage_label=place, reserve=True)
        except SnapshotExistsError:
            # Another run took the name after the look; another moment gives another name.
            if not has_timestamp(settings, request):
                raise


def _place(settings: Settings) -> str:
    """Where the storage is, if it can tell; only then can it be missed when it is somewhere else."""
    return str(getattr(settings.storage, "label", ""))


def list_entries(settings: Settings) -> list[Entry]:
    """Everything in the storage that has a manifest, the newest first.

    That there is nothing is believed only of the storage that the journal knows: a disk that isn't mounted looks like
    an empty one. Raises ``SnapshotStorageError``.
    """
    catalog = Catalog(settings.storage)
    entries, place = catalog.entries(), _place(settings)
    if not entries and place and runs.available():
        catalog.storage_id(expected=runs.known_storage_id(place), create=False)
    return entries


def _plan_with_free_name(
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


# Work


def work(step_id: int, hooks: Hooks | None = None) -> uuid.UUID | None:
    """Work on one step, if nobody else does; return its run's id, or ``None`` if there was nothing to do.

    Never raises for what went wrong with the step: that is in the journal, and ends the run.
    """
    claimed = runs.claim(step_id)
    if claimed is None:
        return None
    step = Step.objects.using(runs.alias()).select_related("run").get(pk=step_id)
    hooks = hooks or Hooks()
    try:
        with hooks.attempt() as processes:
            record = _work_on(step, claimed, processes, hooks)
        runs.complete(claimed, record)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run must learn of it
        runs.fail(claimed, explained(error, str(step)))
    except BaseException:
        runs.fail(claimed, SnapshotError(f"{step}: the worker was shut down in the middle of it."))
        raise
    return step.run.pk


def _work_on(step: Step, claimed: runs.Claim, processes: Processes, hooks: Hooks) -> dict[str, Any]:
    settings, request = get_settings(), Request.from_json(step.run.request)
    progress = _Progress(step, claimed, hooks)
    if step.run.kind == Kind.SNAPSHOT:
        stored = backup.dump_artifact(settings, _attempt(step, claimed, processes, progress))
        progress.flush(last_byte_at=timezone.now())
        return {"artifact": stored.record.to_json(), "plain_filename": stored.plain_filename}
    request = replace(request, name=step.run.name)
    if step.run.kind == Kind.VERIFY:
        report = verifying.verify(Catalog(settings.storage), request.name, level=request.level, observe=progress.moved)
        progress.flush(last_byte_at=timezone.now())
        return report.to_json()
    if step.run.kind == Kind.DELETE:
        delete_snapshot(step.run.name, run=step.run.pk)
        return {"deleted": step.run.name}
    if step.run.kind == Kind.PRUNE:
        return _prune(settings, request, check=lambda: progress.moved(0), run=step.run.pk)
    name = f"django-snapshots {step.run.pk.hex}-{step.position}-{claimed.token}"
    return _restore(settings, request, processes, label=name, observe=progress.moved).to_json()


def _attempt(step: Step, claimed: runs.Claim, processes: Processes, progress: _Progress) -> backup.Attempt:
    planned = PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase)
    return backup.Attempt(
        plan=runs.planned(step.run),
        step=planned,
        token=claimed.token,
        processes=processes,
        exclude_tables=runs.tables(),
        observer=backup.Observer(opened=progress.opened, moved=progress.moved),
    )


def _restore(
    settings: Settings,
    request: Request,
    processes: Processes,
    *,
    label: str = "django-snapshots",
    observe: Callable[[int], None] = lambda _: None,
) -> restoring.RestoreReport:
    aliases = tuple(connections)
    recorded: dict[str, list[str]] = {}

    def make_fit(selections: Sequence[restoring.Selection]) -> None:
        restored = [item.record.subject for item in selections if item.record.type == "database"]
        try:
            journal.make_fit(restored, recorded)
            for alias in restored:
                schedules.write_in(alias)
        except DatabaseError as error:
            raise SnapshotError(
                "Everything is restored, but the journal's own records in it could not be made to fit "
                f"({error}). Run `manage.py migrate` and look at django_migrations."
            ) from error

    attempt = restoring.RestoreAttempt(
        request=request,
        processes=processes,
        label=label,
        preserve_tables=journal.preserved_tables(aliases),
        before_switch=lambda selections: recorded.update(
            journal.recorded_migrations(item.record.subject for item in selections if item.record.type == "database")
        ),
        after_switch=make_fit,
        observe=observe,
    )
    return restoring.restore(settings, attempt)


def _prune(settings: Settings, request: Request, *, check: Callable[[], None], run: uuid.UUID) -> dict[str, Any]:
    wanted, catalog = _prune_request(settings, request), Catalog(settings.storage)
    if request.dry_run:
        return pruning.plan_prune(catalog, wanted).to_json()
    report = pruning.prune(catalog, wanted, delete=lambda name: delete_snapshot(name, run=run), check=check)
    return report.to_json()


def _prune_request(settings: Settings, request: Request) -> pruning.PruneRequest:
    policy = settings.retention
    if isinstance(request.retention, Mapping):
        policy = Policy.parse(request.retention, "retention")
    if policy is None:
        raise SnapshotConfigurationError(
            'There is nothing to prune by: set SNAPSHOTS["RETENTION"], such as {"keep_last": 7}, or give a policy.'
        )
    place = _place(settings)
    expected = runs.known_storage_id(place) if place else None
    return pruning.PruneRequest(
        policy=policy,
        now=backup.utc_now(),
        timezone=timezone.get_default_timezone(),
        project=settings.project,
        environment=settings.environment,
        storage_id=Catalog(settings.storage).storage_id(expected=expected, create=False),
        like=request.like,
        known_bad=runs.known_bad,
    )


def plan_prune(request: Request) -> dict[str, Any]:
    """What a prune would do now; deletes nothing, and leaves no trace in the journal. Raises as a prune does."""
    _require_journal()
    settings = get_settings()
    return pruning.plan_prune(Catalog(settings.storage), _prune_request(settings, request)).to_json()


def _require_journal() -> None:
    if not runs.available():
        raise SnapshotError(
            "A prune needs the journal, which says which snapshots are in use or known to be damaged; nothing was "
            "deleted. Is the database there, and migrated?"
        )


class _Progress:
    """Writes one attempt's progress to the journal, at its first byte and then every two seconds."""

    def __init__(self, step: Step, claimed: runs.Claim, hooks: Hooks) -> None:
        self._step = step
        self._claimed = claimed
        self._hooks = hooks
        self._bytes = 0
        self._last = 0.0

    def opened(self, filename: str, moment: datetime) -> None:
        """The attempt's object and moment are known."""
        runs.note(self._claimed, filename=filename, moment=moment)
        self._hooks.moment_fixed(self._step.run.pk, self._step.phase)

    def moved(self, count: int) -> None:
        """So many bytes went by; raises ``SnapshotCancelled`` if the attempt must end."""
        first = self._bytes == 0
        self._bytes += count
        self._hooks.moved(str(self._step), count)
        if first:
            self.flush(first_byte_at=timezone.now())
        elif monotonic() - self._last >= NOTE_SECONDS:
            self.flush()

    def flush(self, **fields: datetime) -> None:
        """Write now."""
        self._last = monotonic()
        runs.note(self._claimed, content_bytes=self._bytes, **fields)


def explained(error: Exception, what: str) -> SnapshotError:
    """*error* as one that a person understands, that names *what* it happened to, without secrets."""
    if isinstance(error, SnapshotError):
        kind, text = type(error), str(error)
    elif isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        kind, text = SnapshotError, f"{error.strerror or error}{place}"
    else:
        kind, text = SnapshotError, f"{type(error).__name__}: {error}"
        if not isinstance(error, DatabaseError):
            logger.error("%s", redact("".join(traceback.format_exception(error))))
    return runs.rebuild(kind.__name__, redact(text if _names(text, what) else f"{what}: {text}"))


def _names(text: str, what: str) -> bool:
    return what.rpartition(" ")[2] in text


# Finish


def finish(run_id: uuid.UUID) -> Run | None:
    """Finish a run all of whose steps have ended; ``None`` if it isn't time, or somebody else does it."""
    run = runs.claim_finish(run_id)
    if run is None:
        return None
    failure = runs.first_failure(run)
    if failure is None:
        try:
            result = _result(run)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must end with it
            failure = explained(error, f"{run.kind} {run.name}")
        except BaseException:
            _withdraw(run)
            what = f"{run.kind} {run.name} was interrupted while it was finished; the list says whether it is there."
            runs.end_with(run, SnapshotError(what))
            raise
        else:
            runs.succeed(run, result)
            logger.info("%s %s succeeded.", run.kind, run.name)
            return run
    _withdraw(run)
    runs.end_with(run, failure)
    logger.error("%s %s failed: %s", run.kind, run.name or run.pk, failure)
    return run


def _result(run: Run) -> dict[str, Any]:
    steps = list(Step.objects.using(runs.alias()).filter(run=run))
    if run.kind != Kind.SNAPSHOT:
        return dict(steps[0].record or {})
    stored = [
        StoredArtifact(
            record=ArtifactRecord.from_json((step.record or {}).get("artifact"), "the journal"),
            plain_filename=str((step.record or {}).get("plain_filename")),
        )
        for step in steps
    ]
    return summary(backup.publish(get_settings(), runs.planned(run), stored, storage_id=run.storage_id))


def _withdraw(run: Run) -> None:
    filenames = Step.objects.using(runs.alias()).filter(run=run).exclude(filename="").values_list("filename", flat=True)
    if run.kind != Kind.SNAPSHOT or not filenames:
        return
    try:
        _withdraw_objects(get_settings(), run.name, run.pk.hex, list(filenames))
    except SnapshotError as error:
        logger.warning("The objects of failed run %s could not be removed: %s", run.pk, error)


def _withdraw_objects(settings: Settings, name: str, run: str, filenames: Sequence[str]) -> None:
    try:
        backup.withdraw(settings, name, run, filenames)
    except Exception as error:  # noqa: BLE001
        # The run's own error is what the user must see; what is left is unlisted and named after this run.
        logger.warning("The objects of failed run %s could not all be removed: %s", run, redact(str(error)))


def outcome(run: Run) -> dict[str, Any]:
    """The result of a run that succeeded; raises the error of one that did not."""
    if run.state == State.SUCCEEDED:
        return dict(run.result or {})
    raise runs.rebuild(run.error_type, run.error or f"{run.kind} {run.name} did not succeed.")


# Everything in this process


def create_snapshot(
    name: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    metadata: dict[str, Any] | None = None,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> Snapshot:
    """Take a snapshot in this process, several artifacts at once, and return it.

    *name* defaults to ``SNAPSHOTS["NAME"]``, *databases* and *artifacts* to what the settings include. Raises
    ``SnapshotError``; then nothing is listed.
    """
    request = Request.from_json(
        {"name": name, "databases": databases, "artifacts": artifacts, "metadata": metadata or {}}
    )
    result = run_request(Kind.SNAPSHOT, request, requester=requester, hooks=hooks)
    return Catalog(get_settings().storage).get(result["name"])


def restore_snapshot(
    name: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] = (),
    elsewhere: bool = False,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest, in this process; return the report as plain JSON.

    *databases* and *artifacts* name parts of it. *confirm* holds the name of every target that isn't empty and may be
    replaced. *elsewhere* allows a snapshot of another project or environment. Needs neither the journal nor, for an
    artifact that is no database, a database. Raises ``SnapshotError``; its message says what state each target is in.
    """
    request = Request.from_json(
        {
            "name": name,
            "databases": databases,
            "artifacts": artifacts,
            "confirm": confirm,
            "elsewhere": elsewhere,
        }
    )
    return run_request(Kind.RESTORE, request, requester=requester, hooks=hooks)


def verify_snapshot(
    name: str | None = None,
    *,
    level: int = 2,
    requester: runs.Requester | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Verify the snapshot called *name*, or the latest, in this process; return the report as plain JSON.

    Level 1 looks at the manifest and at every file's presence and length, level 2 at every stored byte's digest.
    Raises ``SnapshotIntegrityError`` that names everything that is wrong.
    """
    request = Request.from_json({"name": name, "level": level})
    return run_request(Kind.VERIFY, request, requester=requester, hooks=hooks)


def delete_snapshot(name: str, *, run: uuid.UUID | None = None) -> None:
    """Delete the snapshot called *name* now; *run* is the journal's run that does it, if one does.

    Raises ``SnapshotNotFoundError``, ``SnapshotBusyError`` while a run uses it, and refuses one whose manifest can't
    be read.
    """
    # A journal that has this run says who uses the snapshot, or fails: one that is away now says nothing.
    if run is not None or runs.available():
        runs.busy_with(name, besides=run)
    Catalog(get_settings().storage).delete(name)


def run_request(
    kind: Kind, request: Request, *, requester: runs.Requester | None = None, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Do all of *request* in this process, in the journal if there is one; return its result or raise its error."""
    if runs.available():
        return run_inline(kind, request, requester=requester, hooks=hooks)
    try:
        return _request_without_journal(kind, request, hooks or Hooks())
    except SnapshotError:
        raise
    except Exception as error:
        raise explained(error, str(kind)) from error


def _request_without_journal(kind: Kind, request: Request, hooks: Hooks) -> dict[str, Any]:
    settings = get_settings()
    if kind == Kind.SNAPSHOT:
        return summary(_snapshot_without_journal(settings, request, hooks))
    if kind == Kind.VERIFY:
        catalog = Catalog(settings.storage)
        report = verifying.verify(
            catalog, request.name, level=request.level, observe=lambda count: hooks.moved(kind, count)
        )
        return report.to_json()
    if kind == Kind.PRUNE:
        _require_journal()
    if kind == Kind.DELETE:
        delete_snapshot(request.name or "")
        return {"deleted": request.name}
    with Processes() as processes:
        return _restore(settings, request, processes, observe=lambda count: hooks.moved(kind, count)).to_json()


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
    run, _ = runs.begin(kind, request, run=run_id, requester=requester)
    steps = launch(run)
    rows = {step.position: step.pk for step in steps}
    hooks = hooks or Hooks()

    stop = parallel.Stop()

    def work_on(step: PlannedStep, moment_fixed: Callable[[], None]) -> None:
        work(
            rows[step.position],
            Hooks(moment_fixed=lambda _run, _phase: moment_fixed(), moved=hooks.moved, attempt=stop.attempt),
        )

    planned = [
        PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase) for step in steps
    ]
    try:
        parallel.run(planned, work_on, at_once=get_settings().parallel, stop=stop)
    except BaseException:
        # Interrupted: every step has ended all the same, and the run ends with them.
        finish(run.pk)
        raise
    return outcome(finish(run.pk) or Run.objects.using(runs.alias()).get(pk=run.pk))


def _snapshot_without_journal(settings: Settings, request: Request, hooks: Hooks) -> Snapshot:
    storage_id = Catalog(settings.storage).storage_id()
    plan = _plan_with_free_name(settings, request, uuid.uuid4().hex, lambda _: False)
    share = _Share(hooks=hooks)

    def work_on(step: PlannedStep, moment_fixed: Callable[[], None]) -> None:
        share.work(settings, plan, step, moment_fixed)

    try:
        parallel.run(plan.steps, work_on, at_once=settings.parallel, stop=share.stop)
        if share.errors:
            raise share.errors[0]
        stored = [share.stored[step.position] for step in plan.steps]
        return backup.publish(settings, plan, stored, storage_id=storage_id)
    except BaseException:
        _withdraw_objects(settings, plan.name, plan.run, share.filenames)
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
                    observer=backup.Observer(opened=opened, moved=moved),
                )
                self.stored[step.position] = backup.dump_artifact(settings, attempt)
        except Exception as error:  # noqa: BLE001 - the first one is raised once all threads have ended
            self.errors.append(explained(error, what))
