"""The journal: every move happens once, and its rows survive the restore of the database that holds them."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections

from django_snapshots import runs
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotCancelled,
    SnapshotConnectorError,
    SnapshotExistsError,
)
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request
from tests.integration.sqlite_projects import (
    content,
    journal_tables,
    path,
    query,
    sqlite_project,
    targets,
    without_journal,
    write,
)

TABLES = {f"django_snapshots_{name}" for name in ("run", "step", "lock", "housekeeping")}


# What survives a restore


@pytest.fixture
def project(tmp_path):
    return sqlite_project(tmp_path)


def take(project, name="before"):
    answer = project.call(f"answer = django_snapshots.create_snapshot({name!r}, artifacts=['database']).name")
    assert answer == name


def restore(project, name="before", **arguments):
    answer = project.call(
        f"answer = django_snapshots.restore_snapshot({name!r}, confirm={targets(project)!r}, **{arguments!r})"
    )
    assert "restored" in answer, answer
    return answer


def migrations(project, alias="default", app="django_snapshots"):
    found = query(project, alias, "SELECT name FROM django_migrations WHERE app = ? ORDER BY name", app)
    return [name for (name,) in found]


def test_the_journals_rows_survive_the_restore_of_their_own_database(project):
    take(project)
    write(project, "default", "changed")
    project.call("django_snapshots.verify_snapshot('before')")
    restore(project)
    assert content(project) == ["order in default"]
    told = [(run["kind"], run["state"], run["name"]) for run in project.runs()]
    assert told == [
        ("snapshot", "succeeded", "before"),
        ("verify", "succeeded", "before"),
        ("restore", "succeeded", "before"),
    ]
    assert {step["state"] for step in project.steps()} == {"succeeded"}
    restore(project)
    assert len(project.runs()) == 4


def test_a_connector_that_may_replace_the_journal_restores_only_when_nobody_else_is_at_work(project):
    copies = "tests.integration.sqlite_projects.CopyConnector"
    project.snapshots["DATABASE_CONNECTORS"] = {"default": copies, "other": copies}
    take(project)
    write(project, "default", "changed")
    write(project, "other", "changed")
    at_work = (
        "from django_snapshots.models import Run\nanswer = str(Run.objects.create(kind='verify', state='running').pk)"
    )
    other = project.call(at_work)
    refused = project.call(
        f"answer = django_snapshots.restore_snapshot('before', databases=['default'], confirm={targets(project)!r})"
    )
    assert refused["type"] == "SnapshotBusyError", refused
    assert f"what the verify run {other} writes meanwhile would be lost" in refused["error"]
    assert content(project) == ["changed"]
    # The journal is not in this one.
    restore(project, databases=["other"])
    assert content(project, "other") == ["order in other"]
    query(project, "default", "UPDATE django_snapshots_run SET state = 'failed' WHERE state = 'running'")
    restore(project, databases=["default"])
    assert content(project) == ["order in default"]
    assert [run["state"] for run in project.runs()] == ["succeeded", "failed", "failed", "succeeded", "succeeded"]


def test_the_journal_is_not_in_the_dump(project):
    take(project)
    take(project, "again")
    import subprocess

    dump = project.directory / "dump.sqlite3"
    stored = project.storage / "again" / "default.sqlite3.zst"
    dump.write_bytes(subprocess.run(["zstd", "-dc", stored], capture_output=True, check=True).stdout)
    listed = subprocess.run(["sqlite3", dump, ".tables"], capture_output=True, text=True, check=True).stdout
    assert "auth_group" in listed
    assert "django_snapshots" not in listed


def test_a_snapshot_older_than_the_journal_fits_it_afterwards(project):
    """Taken before the app was installed, restored into a project that has its tables: migrate has nothing to do."""
    without_journal(project)
    for alias in project.databases:
        query(project, alias, "DELETE FROM auth_permission WHERE codename LIKE '%_snapshot' OR codename LIKE '%_run'")
        query(project, alias, "DELETE FROM django_content_type WHERE app_label='django_snapshots'")
    take(project)
    assert not journal_tables(project, "default")
    project.migrate()
    applied = migrations(project)
    assert "0001_initial" in applied
    restore(project)
    for alias in project.databases:
        assert content(project, alias) == [f"order in {alias}"]
        assert journal_tables(project, alias) == TABLES
        assert migrations(project, alias) == applied
        codenames = query(
            project,
            alias,
            "SELECT codename FROM auth_permission JOIN django_content_type AS kind ON kind.id = content_type_id "
            "WHERE app_label='django_snapshots' ORDER BY codename",
        )
        assert ("restore_snapshot",) in codenames
    assert project.manage("migrate", "--check").returncode == 0
    assert [run["state"] for run in project.runs()] == ["succeeded"]


def test_a_database_without_the_journal_does_not_claim_it_afterwards(project):
    """Taken with the tables, restored where they are not: the rows that say they are there would be a lie."""
    take(project)
    without_journal(project)
    write(project, "default", "changed")
    restore(project)
    assert content(project) == ["order in default"]
    for alias in project.databases:
        assert journal_tables(project, alias) == set()
        assert migrations(project, alias) == []
        assert migrations(project, alias, "auth")
    assert project.manage("migrate", "--check").returncode == 1
    project.migrate()
    assert journal_tables(project, "default") == TABLES


def test_a_database_that_is_made_by_the_restore_does_not_claim_it_either(project):
    take(project)
    path(project, "other").unlink()
    restore(project, databases=["other"])
    assert content(project, "other") == ["order in other"]
    assert journal_tables(project, "other") == set()
    assert migrations(project, "other") == []


def test_schedules_that_come_back_are_not_caught_up_on(project):
    project.call(
        "from django_celery_beat.models import PeriodicTask, IntervalSchedule\n"
        "from datetime import datetime, UTC\n"
        "every = IntervalSchedule.objects.create(every=1, period='days')\n"
        "PeriodicTask.objects.create(name='nightly', task='x', interval=every)\n"
        "PeriodicTask.objects.update(last_run_at=datetime(2020, 1, 1, tzinfo=UTC))"
    )
    take(project)
    answer = project.call("from django.utils import timezone\nanswer = timezone.now().isoformat(' ')")
    restore(project)
    rows = "SELECT last_run_at FROM django_celery_beat_periodictask WHERE name = 'nightly'"
    ((last_run_at,),) = query(project, "default", rows)
    assert last_run_at > answer[:19]
    ((changed,),) = query(project, "default", "SELECT last_update FROM django_celery_beat_periodictasks")
    assert changed > answer[:19]


# Moves that happen once


class JournalRouter:
    """Sends this app's models to the journal's own alias, as a project may."""

    alias = ""

    def db_for_read(self, model, **hints):
        return self.alias if model._meta.app_label == "django_snapshots" else None

    db_for_write = db_for_read


@pytest.fixture
def journal(make_sqlite, monkeypatch):
    """The journal in a migrated file, for threads of this process."""
    alias = make_sqlite(OPTIONS={"timeout": 20, "transaction_mode": "IMMEDIATE"})
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    router = JournalRouter()
    router.alias = alias
    from django.db import router as django_router

    monkeypatch.setattr(settings, "DATABASE_ROUTERS", [router])
    monkeypatch.setitem(django_router.__dict__, "routers", [router])
    assert runs.alias() == alias
    return alias


def begun(name="nightly", steps=2, reserve=True):
    run, new = runs.begin(Kind.SNAPSHOT, Request(name=name))
    assert new
    planned = [
        PlannedStep(position=number, type="database", subject=f"alias{number}", phase=0) for number in range(steps)
    ]
    made = runs.start(run, planned, name=name, storage_id="store", storage_label="here", reserve=reserve)
    return run, made


def ended(run, error):
    """End *run* with *error*, whatever its steps do."""
    Step.objects.filter(run=run).update(state=State.SUCCEEDED)
    assert runs.end_with(runs.claim_finish(run.pk), error)
    run.refresh_from_db()


def at_once(count, work):
    """Run *work* in *count* threads at the same moment; return what each gave or raised."""
    barrier = threading.Barrier(count)

    def body(_):
        barrier.wait()
        try:
            return work()
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(body, range(count)))


def test_the_journal_is_there_or_it_is_not(journal, make_sqlite, monkeypatch):
    assert runs.available()
    from django.db import router

    empty = make_sqlite()
    monkeypatch.setattr(router.routers[0], "alias", empty)
    assert not runs.available()


def test_the_same_id_is_one_run(journal):
    run_id = uuid.uuid4()
    results = at_once(6, lambda: runs.begin(Kind.SNAPSHOT, Request(), run=run_id)[1])
    assert sorted(results) == [False] * 5 + [True]
    assert Run.objects.count() == 1


def test_one_of_many_workers_gets_a_step(journal):
    _, (step, _) = begun()
    claims = [claim for claim in at_once(6, lambda: runs.claim(step.pk)) if claim is not None]
    assert [claim.token for claim in claims] == [1]


def test_a_name_is_reserved_by_one_run(journal):
    begun("nightly")
    with pytest.raises(runs.InTheWay, match="'nightly'") as rival:
        begun("nightly")
    assert isinstance(rival.value.error, SnapshotExistsError)
    begun("another")
    assert runs.reserved_by("store", "nightly") == rival.value.run
    assert not runs.reserved_by("elsewhere", "nightly")


def test_a_name_is_free_again_when_its_run_has_ended(journal):
    run, _ = begun()
    ended(run, SnapshotConnectorError("no"))
    assert run.state == State.FAILED
    begun()


def test_one_of_many_finishes(journal):
    run, steps = begun()
    claims = [runs.claim(step.pk) for step in steps]
    assert runs.claim_finish(run.pk) is None
    for claim in claims:
        assert runs.complete(claim, {"artifact": {}})
    finishers = [found for found in at_once(6, lambda: runs.claim_finish(run.pk)) if found is not None]
    assert len(finishers) == 1
    assert runs.succeed(finishers[0], {"name": "nightly"})
    assert not runs.succeed(finishers[0], {"name": "other"})
    assert not runs.end_with(finishers[0], SnapshotConnectorError("late"))
    run.refresh_from_db()
    assert (run.state, run.result, run.reservation, run.lease_until) == (
        State.SUCCEEDED,
        {"name": "nightly"},
        None,
        None,
    )


def test_a_step_ends_once_and_only_by_its_holder(journal):
    _, (step, other) = begun()
    claim = runs.claim(step.pk)
    stale = runs.Claim(step=step.pk, token=0)
    assert not runs.complete(stale, {})
    assert not runs.fail(stale, SnapshotConnectorError("late"))
    with pytest.raises(SnapshotCancelled):
        runs.note(stale, content_bytes=1)
    runs.note(claim, content_bytes=7)
    assert runs.complete(claim, {"artifact": {}})
    # Asked again because the answer was lost, it tells the same, and changes nothing.
    assert runs.complete(claim, {"artifact": {"other": 1}})
    assert not runs.fail(claim, SnapshotConnectorError("late"))
    step.refresh_from_db()
    assert (step.state, step.content_bytes, step.attempts) == (State.SUCCEEDED, 7, 1)
    assert step.record == {"artifact": {}}
    assert runs.claim(step.pk) is None
    assert runs.claim(other.pk) is not None


def test_a_failure_ends_what_was_not_begun_and_stops_what_was(journal):
    run, (first, second, third) = begun(steps=3)
    one, two = runs.claim(first.pk), runs.claim(second.pk)
    assert runs.fail(one, SnapshotConnectorError("'alias0': no such table"))
    third.refresh_from_db()
    assert third.state == State.CANCELLED
    assert runs.claim(third.pk) is None
    with pytest.raises(SnapshotCancelled, match="Another step"):
        runs.note(two, content_bytes=1)
    runs.fail(two, SnapshotCancelled("Another step of this run has failed."))
    finishing = runs.claim_finish(run.pk)
    failure = runs.first_failure(finishing.run)
    assert isinstance(failure, SnapshotConnectorError)
    assert "no such table" in str(failure)


def test_a_cancelled_run_stops_at_its_next_note(journal):
    run, (step, _) = begun()
    claim = runs.claim(step.pk)
    runs.request_cancel(run.pk, "olga")
    with pytest.raises(SnapshotCancelled, match="Cancelled by olga"):
        runs.note(claim)
    ended(run, SnapshotCancelled("Cancelled by olga."))
    assert run.state == State.CANCELLED


def test_a_run_in_the_way_is_named(journal):
    begun("nightly", reserve=False)
    run, _ = runs.begin(Kind.VERIFY, Request(name="nightly"))
    shared, alone = (runs.snapshot_lock("nightly", exclusive=exclusive) for exclusive in (False, True))
    runs.start(run, [], name="nightly", storage_id="", storage_label="", reserve=False, wanted=[shared])
    runs.require_free(shared)
    with pytest.raises(SnapshotBusyError, match=str(run.pk)):
        runs.require_free(alone)
    runs.require_free(runs.snapshot_lock("other", exclusive=True))
    ended(run, SnapshotConnectorError("no"))
    runs.require_free(alone)


def test_no_secret_gets_into_the_journal(journal, monkeypatch):
    monkeypatch.setitem(settings.DATABASES[journal], "PASSWORD", "hunter2")
    run, (step, _) = begun()
    runs.fail(runs.claim(step.pk), RuntimeError("login with hunter2 refused"))
    ended(run, ValueError("postgres://u:hunter2@host and x" + "y" * 100_000))
    step.refresh_from_db()
    assert "hunter2" not in step.error + run.error
    assert "refused" in step.error
    assert len(run.error) <= 20_000


def test_a_message_that_comes_twice_starts_a_run_once(journal):
    run, steps = begun()
    planned = [PlannedStep(position=0, type="media", subject="media", phase=0)]
    again = runs.start(run, planned, name="x", storage_id="y", storage_label="z", reserve=True)
    assert [step.pk for step in again] == [step.pk for step in steps]
    assert Step.objects.count() == 2


def test_the_storage_that_was_used_last_is_known(journal):
    assert runs.known_storage_id("here") is None
    begun()
    assert runs.known_storage_id("here") == "store"
    assert runs.known_storage_id("there") is None
