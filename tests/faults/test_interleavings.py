"""Two holders of one thing, in the order in which one of them could lose, doubt or undo what the other one did."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from threading import Event

import pytest
from django.core.files.storage import InMemoryStorage
from django.core.management import call_command
from django.db import connections, transaction
from django.utils import timezone

from django_snapshots import create_snapshot, execution, runs, verify_snapshot
from django_snapshots import prune as pruning
from django_snapshots import undo as undoing
from django_snapshots.catalog import Catalog
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotCancelled,
    SnapshotError,
    SnapshotExistsError,
    SnapshotStorageError,
)
from django_snapshots.execution.expiry import expire
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.runs import DatabaseNow
from django_snapshots.storage import DjangoStorageBackend
from django_snapshots.testing import MemoryStorage
from django_snapshots.undo import Found, Kept
from tests.projects import wait_until


class _Router:
    """Puts the journal, and nothing else, into one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model, **hints):
        return self.alias if model._meta.app_label == "django_snapshots" else None

    db_for_write = db_for_read


@pytest.fixture(params=["sqlite"])
def journal(request, settings):
    """The alias of a real database with the journal's tables."""
    alias = request.getfixturevalue(f"make_{request.param}")()
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = [_Router(alias)]
    return alias


@pytest.fixture
def storage(settings):
    """Snapshots go into memory, and hold the environment alone."""
    made = MemoryStorage()
    settings.SNAPSHOTS = {"STORAGE": made, "ARTIFACTS": ["environment"]}
    return made


def launched(kind: Kind, name: str) -> Step:
    """The one step of a run that a worker has begun, and that nobody works on yet."""
    run, _ = runs.begin(kind, Request(name=name))
    (step,) = execution.launch(run)
    return step


def run_of(step: Step) -> Run:
    """Its run as the journal tells it now."""
    return Run.objects.get(pk=step.run_id)


def interrupted(monkeypatch, at: str, step: Step) -> None:
    """Work on *step* with a worker that is told to end right before the move *at*."""
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(runs, at, lambda *_: (_ for _ in ()).throw(SystemExit))
        execution.work(step.pk)


def by_another_project(monkeypatch, name: str) -> str:
    """A snapshot that whoever shares the storage has taken, of which the journal knows nothing; its run."""
    with monkeypatch.context() as patched:
        patched.setattr(runs, "available", lambda: False)
        return create_snapshot(name).run


# Deletes: a name that is used again


def test_a_name_is_not_free_before_its_delete_has_ended(journal, storage, monkeypatch):
    """Else the next attempt of the delete would find another snapshot there."""
    create_snapshot("nightly")
    step = launched(Kind.DELETE, "nightly")
    interrupted(monkeypatch, "complete", step)
    assert storage.list("nightly") == []
    with pytest.raises(SnapshotBusyError, match="delete run"):
        create_snapshot("nightly")
    execution.finish(execution.work(step.pk))
    assert run_of(step).state == State.SUCCEEDED
    create_snapshot("nightly")


def test_a_delete_that_is_begun_anew_leaves_another_projects_snapshot_alone(journal, storage, monkeypatch):
    create_snapshot("nightly")
    step = launched(Kind.DELETE, "nightly")
    interrupted(monkeypatch, "complete", step)
    theirs = by_another_project(monkeypatch, "nightly")
    execution.finish(execution.work(step.pk))
    assert Catalog(storage).get("nightly").run == theirs
    verify_snapshot("nightly")


def test_a_prune_leaves_a_snapshot_alone_that_has_got_the_name_since_it_was_planned(journal, storage, monkeypatch):
    for name in ("old", "new"):
        create_snapshot(name)
    planned = pruning.plan_prune
    taken = []

    def and_then_the_name_is_used_again(catalog, request):
        plan = planned(catalog, request)
        if not taken:
            catalog.delete("old")
            taken.append(create_snapshot("old").run)
        return plan

    monkeypatch.setattr(pruning, "plan_prune", and_then_the_name_is_used_again)
    report = execution.run_request(Kind.PRUNE, Request(retention={"keep_last": 1}))
    assert report["deleted"] == []
    assert [Catalog(storage).get("old").run] == taken


def test_the_collector_leaves_a_snapshot_alone_that_has_got_the_name_of_a_half_deleted_one(
    journal, storage, monkeypatch
):
    create_snapshot("nightly")
    storage.atomic_move("nightly/manifest.json", "nightly/tombstone.json")
    half_deleted = Catalog.half_deleted

    def and_then_the_name_is_used_again(catalog):
        found = list(half_deleted(catalog))
        catalog.delete("nightly")
        create_snapshot("nightly")
        return iter(found)

    monkeypatch.setattr(Catalog, "half_deleted", and_then_the_name_is_used_again)
    assert execution.collect() == []
    verify_snapshot("nightly")


# The last move against a cancel


@pytest.mark.parametrize("journal", ["postgres", "mariadb"], indirect=True)
def test_a_restore_does_not_switch_once_a_cancel_was_granted(journal):
    """Both ask for the row of the run at the same moment, and the cancel gets it."""
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly"))
    steps = [PlannedStep(position=0, type="restore", subject="nightly", phase=0)]
    (step,) = runs.start(run, steps, name="nightly", storage_id="", storage_label="", reserve=False)
    claimed = runs.claim(step.pk)

    def switch():
        try:
            runs.close_the_way_back_of_step(claimed)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic(using=journal):
            # What a cancel does to the run; of the steps it may lock more than it changes.
            Run.objects.filter(pk=run.pk).update(cancel_requested_at=timezone.now(), cancel_requested_by="olga")
            switched = pool.submit(switch)
            wait_until(lambda: waits_for_a_lock(journal), "the switch to wait for the cancel")
        with pytest.raises(SnapshotCancelled, match="olga"):
            switched.result()
    assert run_of(step).publishing_at is None


def waits_for_a_lock(alias: str) -> bool:
    question = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'UPDATE %publishing_at%'",
    }[connections[alias].vendor]
    with connections[alias].cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()[0] > 0


def test_a_delete_can_not_be_cancelled_once_it_deletes(journal, settings):
    """Else the run says that it was cancelled, and the snapshot is gone."""
    refused = []

    class Cancelling(MemoryStorage):
        def atomic_move(self, src, dst):
            if dst.endswith("tombstone.json"):
                cancel()
            super().atomic_move(src, dst)

    def cancel():
        asked_at = timezone.now()
        try:
            runs.request_cancel(step.run_id, "olga")
        except SnapshotError as error:
            refused.append(str(error))
        else:
            wait_until(lambda: Step.objects.get().heartbeat_at > asked_at, "the deleter to hear of it")

    settings.SNAPSHOTS = {"STORAGE": Cancelling(), "ARTIFACTS": ["environment"], "LEASE": 4}
    create_snapshot("nightly")
    Run.objects.all().delete()
    step = launched(Kind.DELETE, "nightly")
    execution.finish(execution.work(step.pk))
    assert (run_of(step).state, run_of(step).error) == (State.SUCCEEDED, "")
    assert len(refused) == 1


# Finishers


def worked_on(name: str) -> Step:
    """The one step of a snapshot that only has to be finished."""
    step = launched(Kind.SNAPSHOT, name)
    assert execution.work(step.pk) == step.run_id
    return step


def test_a_finisher_that_could_not_reach_the_journal_leaves_the_run_to_the_next_one(journal, storage, monkeypatch):
    """All is stored; the outage was longer than its lease, and nobody has cancelled anything."""
    step = worked_on("nightly")
    with monkeypatch.context() as patched:
        moved = storage.atomic_move

        def and_the_lease_is_over(src, dst):
            moved(src, dst)
            patched.setattr(runs.Lease, "holds", lambda _: False)

        patched.setattr(storage, "atomic_move", and_the_lease_is_over)
        assert execution.finish(step.run_id) is None
    Run.objects.update(lease_until=None)
    assert execution.finish(step.run_id).state == State.SUCCEEDED
    verify_snapshot("nightly")


def test_a_run_that_has_succeeded_in_spite_of_an_error_does_not_show_it(journal, settings):
    class Faltering(MemoryStorage):
        def atomic_move(self, src, dst):
            super().atomic_move(src, dst)
            if dst.endswith("manifest.json"):
                raise SnapshotStorageError("The answer was lost.")

    settings.SNAPSHOTS = {"STORAGE": Faltering(), "ARTIFACTS": ["environment"]}
    run = execution.finish(worked_on("nightly").run_id)
    assert (run.state, run.error, run.error_type) == (State.SUCCEEDED, "", "")


# Messages


def test_who_waits_for_a_run_takes_none_of_its_messages(journal, storage):
    """Whoever finds it in the way looks every half second whether it is dead; only a sweep sends what was lost."""
    step = launched(Kind.SNAPSHOT, "nightly")
    assert not execution.settle_dead(run_of(step))
    assert runs.sweep().begin == [step.pk]


# An inline run, and others that look at it


def test_a_step_that_took_long_does_not_look_silent_when_it_ends(journal, storage, monkeypatch):
    """A sweep in that moment would take the run for a dead one, give up its other steps, or finish it."""
    step = launched(Kind.SNAPSHOT, "nightly")
    Run.objects.update(inline=True)
    Step.objects.create(run=run_of(step), position=1, phase=step.phase, type="environment", subject="more")
    claimed = runs.claim(step.pk)
    Run.objects.update(touched_at=DatabaseNow(-3600))
    touch = runs.steps._touch

    def while_others_sweep(claim):
        runs.sweep()
        touch(claim)
        runs.sweep()

    monkeypatch.setattr(runs.steps, "_touch", while_others_sweep)
    assert runs.complete(claimed, {})
    runs.sweep()
    assert Step.objects.get(position=1).state == State.QUEUED


def test_other_databases_add_the_seconds_themselves(journal):
    """What a journal on Oracle gets; here its own database compiles it."""
    connection = connections[runs.alias()]
    compiler = Run.objects.using(runs.alias()).all().query.get_compiler(runs.alias())
    before, moment, after = DatabaseNow(60), DatabaseNow(90).as_sql(compiler, connection), DatabaseNow(120)
    parts = [before.as_sqlite(compiler, connection), moment, after.as_sqlite(compiler, connection)]
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {parts[0][0]} < {parts[1][0]}, {parts[1][0]} < {parts[2][0]}",
            [*parts[0][1], *parts[1][1], *parts[1][1], *parts[2][1]],
        )
        assert cursor.fetchone() == (1, 1)


def test_a_run_that_another_process_finishes_is_waited_for(journal, settings, monkeypatch):
    """A sweep finds it between the end of its last step and the finish in its own process."""
    inside, go_on = Event(), Event()

    class Slow(MemoryStorage):
        def atomic_move(self, src, dst):
            if dst.endswith("manifest.json"):
                inside.set()
                assert go_on.wait(30)
            super().atomic_move(src, dst)

    settings.SNAPSHOTS = {"STORAGE": Slow(), "ARTIFACTS": ["environment"]}
    finish, complete = execution.finish, runs.complete

    def finish_elsewhere(run_id):
        try:
            return finish(run_id)
        finally:
            connections.close_all()

    def and_a_sweep_comes(claimed, record):
        assert complete(claimed, record)
        elsewhere.append(pool.submit(finish_elsewhere, runs.run_of(claimed.step)))
        assert inside.wait(30)
        return True

    def and_the_other_one_goes_on(run_id, hooks=None):
        found = finish(run_id, hooks)
        go_on.set()
        return found

    monkeypatch.setattr(runs, "complete", and_a_sweep_comes)
    monkeypatch.setattr(execution.inline, "finish", and_the_other_one_goes_on)
    elsewhere: list = []
    with ThreadPoolExecutor(1) as pool:
        assert create_snapshot("nightly").name == "nightly"
        assert elsewhere[0].result().state == State.SUCCEEDED


# Names


def test_a_name_that_a_dead_run_publishes_at_last_is_not_planned_again(journal, storage):
    """Whoever asks for the name brings that run to its end; then the snapshot is there."""
    step = worked_on("nightly")
    Run.objects.update(touched_at=DatabaseNow(-3600))
    with pytest.raises(SnapshotExistsError, match="exists already"):
        launched(Kind.SNAPSHOT, "nightly")
    assert run_of(step).state == State.SUCCEEDED


# Garbage


def test_what_a_run_has_published_is_no_garbage_while_its_manifest_is_away(journal, settings):
    """Somebody copies the storage back, and the manifest comes last."""
    storage = MemoryStorage()
    storage.move_is_copy = True
    settings.SNAPSHOTS = {"STORAGE": storage, "ARTIFACTS": ["environment"], "SWEEP_GRACE": 0}
    run = create_snapshot("nightly").run
    lost = f"requirements.{run}-0-7.txt"
    storage.write(f"nightly/{lost}", BytesIO(b"of an attempt that has lost"))
    storage.atomic_move("nightly/manifest.json", "elsewhere/manifest.json")
    assert execution.collect() == [f"nightly/{lost}"]
    storage.atomic_move("elsewhere/manifest.json", "nightly/manifest.json")
    verify_snapshot("nightly")


# A storage of the basic tier


def test_a_finisher_whose_connection_has_died_takes_no_manifest_of_the_next_one_away(journal, settings):
    """It slept in the middle of its write, so the storage fails when it wakes up; half an object would be removed."""

    class Sleeping(InMemoryStorage):
        slept = False

        def _save(self, name, content):
            if not name.endswith("manifest.json") or self.slept:
                return super()._save(name, content)
            self.slept = True
            Run.objects.update(lease_until=None)
            assert execution.finish(step.run_id).state == State.SUCCEEDED
            raise ConnectionResetError("The connection was reset.")

    settings.SNAPSHOTS = {"STORAGE": DjangoStorageBackend(Sleeping()), "ARTIFACTS": ["environment"]}
    step = worked_on("nightly")
    assert execution.finish(step.run_id) is None
    assert run_of(step).state == State.SUCCEEDED
    verify_snapshot("nightly")


# A prune, and what it relies on


def test_what_a_prune_keeps_can_not_be_deleted_while_it_prunes(journal, storage, monkeypatch):
    """Else the newest is deleted by hand, and the older ones by the prune, which kept the newest instead of them."""
    for name in ("older", "old", "new"):
        create_snapshot(name)
    refused = []
    delete = execution.operations.delete_snapshot

    def while_somebody_deletes_the_newest(name, **arguments):
        if not refused:
            with pytest.raises(SnapshotBusyError) as busy:
                execution.run_request(Kind.DELETE, Request(name="new"))
            refused.append(busy.value)
        delete(name, **arguments)

    monkeypatch.setattr(execution.operations, "delete_snapshot", while_somebody_deletes_the_newest)
    execution.run_request(Kind.PRUNE, Request(retention={"keep_last": 1}))
    assert [entry.name for entry in Catalog(storage).entries()] == ["new"]
    execution.run_request(Kind.DELETE, Request(name="new"))


def test_a_prune_whose_newest_is_deleted_before_it_begins_deletes_nothing(journal, storage, monkeypatch):
    for name in ("old", "new"):
        create_snapshot(name)
    planned = pruning.plan_prune

    def and_then_the_newest_is_deleted(catalog, request):
        plan = planned(catalog, request)
        if catalog.exists("new"):
            catalog.delete("new")
        return plan

    monkeypatch.setattr(pruning, "plan_prune", and_then_the_newest_is_deleted)
    with pytest.raises(SnapshotError, match="Nothing was deleted"):
        execution.run_request(Kind.PRUNE, Request(retention={"keep_last": 1}))
    verify_snapshot("old")


# A restore behind its point of no return


def test_a_switch_that_fails_while_the_journal_is_away_tells_what_the_target_is(journal, storage, monkeypatch):
    """Behind that point nothing ends the attempt, so that its lease is over is not why it failed."""
    create_snapshot("nightly")
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly"))
    steps = [PlannedStep(position=0, type="restore", subject="nightly", phase=0)]
    (step,) = runs.start(run, steps, name="nightly", storage_id="", storage_label="", reserve=False)

    def switch(*_arguments, observe, before_switch, **_more):
        before_switch()
        monkeypatch.setattr(runs.Lease, "holds", lambda _: False)
        observe(1)
        raise SnapshotError("default may be half restored; restore it again.")

    monkeypatch.setitem(execution.work.__globals__, "restore_with_journal", switch)
    execution.work(step.pk)
    assert "half restored" in Step.objects.get(pk=step.pk).error


def test_a_switch_whose_outcome_is_not_known_is_settled_by_whoever_comes_next(journal, storage, monkeypatch):
    """A server that was lost in the middle of it may leave its target neither this nor that, until it is settled."""
    create_snapshot("nightly")
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly"), inline=True)
    steps = [PlannedStep(position=0, type="restore", subject="nightly", phase=0)]
    (step,) = runs.start(run, steps, name="nightly", storage_id="", storage_label="", reserve=False)

    def switch(*_arguments, before_switch, **_more):
        before_switch()
        raise SnapshotUnsettled("The server was lost in the middle of it.")

    monkeypatch.setitem(execution.work.__globals__, "restore_with_journal", switch)
    assert execution.work(step.pk) is None
    step.refresh_from_db()
    assert (step.state, run_of(step).state, run_of(step).inline) == (State.QUEUED, State.RUNNING, False)
    with pytest.raises(SnapshotUnsettled, match="has not ended: a worker"):
        execution.inline._require_settled(run_of(step))
    Step.objects.filter(pk=step.pk).update(not_before=None)
    assert runs.unsettled(run_of(step)) == [step.pk]
    assert execution.work(step.pk) == run.pk
    step.refresh_from_db()
    assert step.state == State.FAILED


def test_a_safety_copy_that_an_undo_reads_can_not_be_deleted(journal, storage, monkeypatch):
    made = create_snapshot("safety")
    moment = timezone.now() - timedelta(days=1)
    kept = Kept(
        run=made.run,
        type="environment",
        subject="environment",
        replaced_at=moment,
        expires_at=moment,
        place="safety copy",
        snapshot="safety",
    )
    monkeypatch.setattr(undoing, "look", lambda _settings: Found(states=(kept,), unasked=()))
    run, _ = runs.begin(Kind.UNDO, Request(undo=made.run))
    execution.launch(run)
    assert expire(get_settings()) == []
    with pytest.raises(SnapshotBusyError):
        execution.operations.delete_snapshot("safety")
    Run.objects.filter(pk=run.pk).update(state=State.FAILED)
    assert expire(get_settings()) == ["safety copy"]


def test_a_restore_locks_what_it_replaces_as_it_sees_it_at_work(journal, storage, settings, tmp_path):
    """Its database may have gone by another name when it began, because the server was away."""
    settings.MEDIA_ROOT = str(tmp_path / "media")
    settings.SNAPSHOTS = {"STORAGE": storage, "ARTIFACTS": ["media"]}
    picture = tmp_path / "media" / "picture"
    picture.parent.mkdir()
    picture.write_text("before")
    create_snapshot("nightly")
    picture.write_text("now")
    other, _ = runs.begin(Kind.RESTORE, Request(name="nightly"))
    execution.launch(other)
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly", confirm=(settings.MEDIA_ROOT,)))
    steps = [PlannedStep(position=0, type="restore", subject="nightly", phase=0)]
    (step,) = runs.start(run, steps, name="nightly", storage_id="", storage_label="", reserve=False)
    execution.work(step.pk)
    assert "is in use by restore run" in Step.objects.get(pk=step.pk).error
    assert picture.read_text() == "now"
