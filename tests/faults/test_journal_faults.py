"""The journal's moves under two workers at once, lost connections and odd texts, on every engine that may hold it."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from threading import Barrier
from zoneinfo import ZoneInfo

import pytest
from celery.exceptions import Ignore
from django.core.management import call_command
from django.db import connections, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from django_snapshots import create_snapshot, list_snapshots, messages, parallel, runs, tasks, verify_snapshot
from django_snapshots.artifacts.environment import EnvironmentArtifact
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError, SnapshotStorageError
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request
from django_snapshots.runs import steps
from django_snapshots.testing import MemoryStorage

AT_ONCE = 6
ROUNDS = 15


class _Router:
    """Puts the journal, and nothing else, into one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model, **hints):
        return self.alias if model._meta.app_label == "django_snapshots" else None

    db_for_write = db_for_read


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def journal(request, settings):
    """The alias of a real database with the journal's tables."""
    alias = request.getfixturevalue(f"make_{request.param}")()
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = [_Router(alias)]
    return alias


def a_running_step() -> Step:
    run, _ = runs.begin(Kind.SNAPSHOT, Request())
    steps = [PlannedStep(position=0, type="environment", subject="requirements", phase=0)]
    return runs.start(run, steps, name=run.pk.hex, storage_id="", storage_label="", reserve=False)[0]


def test_of_workers_with_the_same_message_one_gets_the_step(journal):
    barrier = Barrier(AT_ONCE)

    def claim(step):
        try:
            connections[journal].ensure_connection()
            barrier.wait()
            return runs.claim(step)
        finally:
            connections[journal].close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(ROUNDS):
            step = a_running_step()
            claims = list(pool.map(claim, [step.pk] * AT_ONCE))
            step.refresh_from_db(using=journal)
            assert [claimed.token for claimed in claims if claimed] == [1]
            assert (step.token, step.attempts) == (1, 1)


@pytest.fixture
def storage(settings):
    """Snapshots go into memory, and hold the environment alone."""
    made = MemoryStorage()
    settings.SNAPSHOTS = {"STORAGE": made, "ARTIFACTS": ["environment"]}
    return made


@pytest.fixture
def broken(monkeypatch):
    """``broken(error)`` lets every dump of the environment fail with *error*."""

    def fail(error):
        def open_dump(self, subject, request):
            raise error

        monkeypatch.setattr(EnvironmentArtifact, "open_dump", open_dump)

    return fail


@pytest.mark.parametrize("words", ["a\0b", "media/\udcff.png"], ids=["NUL", "no UTF-8"])
def test_an_error_that_no_database_can_keep_still_ends_the_run(journal, storage, broken, words):
    broken(SnapshotConnectorError(f"exit status 1: {words}"))
    with pytest.raises(SnapshotConnectorError, match="exit status 1: "):
        create_snapshot("odd")
    run = Run.objects.using(journal).get()
    assert (run.state, run.reservation) == (State.FAILED, None)
    assert "exit status 1: " in run.error


def test_a_project_without_time_zones_has_a_journal(journal, storage, settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Tokyo"
    connections[journal].close()
    taken = create_snapshot("no-zones")
    connections[journal].close()
    step = Step.objects.using(journal).get()
    assert step.state == State.SUCCEEDED
    assert step.moment == timezone.make_naive(taken.created_at, ZoneInfo("Asia/Tokyo"))


@pytest.mark.parametrize("zones", [True, False])
def test_the_time_of_the_database_is_that_of_its_host(journal, settings, zones):
    settings.USE_TZ, settings.TIME_ZONE = zones, "Asia/Tokyo"
    connections[journal].close()
    there = runs.database_time()
    connections[journal].close()
    assert abs(there - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("journal", ["postgres", "mariadb"], indirect=True)
def test_a_connection_that_the_server_has_ended_does_not_hide_the_journal(journal):
    connection = connections[journal]
    ask, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mysql": ("SELECT connection_id()", "KILL {}"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(ask)
        session = cursor.fetchone()[0]
    with closing(connections.create_connection(journal)) as other, other.cursor() as cursor:
        cursor.execute(end.format(session))
    assert runs.available()


def test_a_name_that_can_not_be_made_ends_the_run(journal, storage, settings):
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "NAME": lambda: str(1 // 0)}
    with pytest.raises(SnapshotError, match="ZeroDivisionError"):
        create_snapshot()
    assert Run.objects.using(journal).get().state == State.FAILED


@contextmanager
def received():
    """A message of the snapshot task, as a worker has it."""
    tasks.snapshot.push_request(id=str(uuid.uuid4()), called_directly=False, is_eager=False)
    try:
        yield tasks.snapshot
    finally:
        tasks.snapshot.pop_request()


@pytest.fixture
def sent(monkeypatch):
    """The steps that messages were sent for; nobody receives them."""
    found = []
    monkeypatch.setattr(messages, "_send", lambda task, *, args, **_options: found.append(args[0]))
    return found


def test_a_doubled_message_leaves_a_live_run_alone(journal, storage, sent):
    with received() as task:
        for _ in range(2):
            with pytest.raises(Ignore):
                task.run("twice")
        run = Run.objects.using(journal).get()
        assert (run.state, len(set(sent))) == (State.RUNNING, 1)
        for step in sent:
            tasks.step.run(step)
        run.refresh_from_db(using=journal)
        assert run.state == State.SUCCEEDED
        with pytest.raises(Ignore):
            task.run("twice")
    run.refresh_from_db(using=journal)
    assert run.state == State.SUCCEEDED
    assert [entry.name for entry in list_snapshots(storage)] == ["twice"]


def test_a_broker_that_goes_away_costs_a_run_only_time(journal, storage, sent, monkeypatch, caplog):
    def refused(task, **_options):
        raise OperationalError("connection to amqp://user:hidden@broker refused")

    with monkeypatch.context() as away, received() as task:
        away.setattr(messages, "_send", refused)
        with pytest.raises(Ignore):
            task.run("unsent")
    assert "could not be sent" in caplog.text
    assert "hidden" not in caplog.text
    run = Run.objects.using(journal).get()
    assert run.state == State.RUNNING
    messages.send_swept(runs.sweep())
    assert len(sent) == 1
    tasks.step.run(sent[0])
    run.refresh_from_db(using=journal)
    assert run.state == State.SUCCEEDED


def test_a_request_that_nobody_understands_holds_up_no_other(journal, storage, sent):
    odd, _ = runs.begin(Kind.VERIFY, Request(name="odd"))
    Run.objects.using(journal).filter(pk=odd.pk).update(request={"colour": "blue"}, task_id=str(odd.pk))
    with received() as task, pytest.raises(Ignore):
        task.run("lost")
    del sent[:]
    Run.objects.using(journal).update(touched_at=timezone.now() - timedelta(days=1))
    Step.objects.using(journal).update(hinted_at=timezone.now() - timedelta(days=1))
    assert messages.send_swept(runs.sweep())
    assert len(sent) == 1
    odd.refresh_from_db(using=journal)
    assert odd.state == State.FAILED
    assert "colour" in odd.error


def test_inside_a_transaction_it_is_refused_at_once(journal, storage):
    with transaction.atomic(using=journal), pytest.raises(SnapshotError, match="inside of transaction"):
        create_snapshot("inside")
    assert not Run.objects.using(journal).exists()
    create_snapshot("outside")


def test_inside_a_test_case_everything_happens_in_its_thread(journal, storage, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "_has_memory_database", lambda: False)
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "ARTIFACTS": ["environment", "media"]}
    settings.MEDIA_ROOT = tmp_path
    with transaction.atomic(using=journal):
        connections[journal].atomic_blocks[-1]._from_testcase = True
        assert len(create_snapshot("tested").artifacts) == 2


@pytest.mark.parametrize("at", ["artifact", "manifest"])
def test_a_shutdown_in_the_middle_of_publishing_ends_the_run(journal, storage, monkeypatch, at):
    """The manifest has its name, or nothing has; the journal says which, and frees the name."""
    move = storage.atomic_move

    def shut_down(src, dst):
        if dst.endswith("manifest.json") == (at == "manifest"):
            move(src, dst)
            raise SystemExit(0)
        move(src, dst)

    create_snapshot("before")  # makes the storage's own marker
    monkeypatch.setattr(storage, "atomic_move", shut_down)
    with pytest.raises(SystemExit):
        create_snapshot("cut")
    run = Run.objects.using(journal).get(name="cut")
    assert run.reservation is None
    assert run.state == (State.SUCCEEDED if at == "manifest" else State.FAILED)
    assert ("interrupted" in run.error) == (at == "artifact")
    whole = [entry.name for entry in list_snapshots(storage) if verify_snapshot(entry.name)]
    assert whole == (["cut", "before"] if at == "manifest" else ["before"])


def test_an_error_of_a_class_with_an_endless_name_still_ends_the_run(journal, storage, broken):
    broken(type("E" * 200, (SnapshotError,), {})("no room"))
    with pytest.raises(SnapshotError, match="no room"):
        create_snapshot("long")
    assert Run.objects.using(journal).get().state == State.FAILED


def test_a_storage_with_an_endless_name_is_missed_too(journal, storage, settings):
    class Deep(MemoryStorage):
        label = f"directory /srv/{'deep/' * 60}"

    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "STORAGE": Deep()}
    create_snapshot("known")
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "STORAGE": Deep()}
    with pytest.raises(SnapshotStorageError, match="not the storage that it was"):
        create_snapshot("unmounted")


def test_without_a_journal_a_foreign_error_is_explained_and_holds_no_secret(storage, settings, monkeypatch):
    def away(path):
        raise ConnectionResetError("https://user:hidden@bucket reset")

    for look in ("available", "is_there"):
        monkeypatch.setattr(runs, look, lambda: False)
    monkeypatch.setattr(storage, "stream_read", away)
    with pytest.raises(SnapshotError, match="bucket reset") as caught:
        create_snapshot("away")
    assert "hidden" not in str(caught.value)


def two_phases():
    """The step of a database and that of the media files, which must not look before the database's moment."""
    run, _ = runs.begin(Kind.SNAPSHOT, Request())
    planned = [PlannedStep(position=number, type="thing", subject=str(number), phase=number) for number in range(2)]
    return runs.start(run, planned, name=run.pk.hex, storage_id="", storage_label="", reserve=False)


def test_a_message_that_comes_early_begins_nothing(journal):
    early, late = two_phases()
    assert runs.claim(late.pk) is None
    runs.note(runs.claim(early.pk), moment=timezone.now())
    assert runs.claim(late.pk) is not None


def test_a_step_that_is_given_back_takes_its_moment_with_it(journal):
    """Else the media files would be walked before the moment of the database that their rows lie in."""
    early, late = two_phases()
    first = runs.claim(early.pk)
    runs.note(first, moment=timezone.now())
    walked = runs.claim(late.pk)
    assert runs.complete(walked, {})
    assert runs.release(first)
    late.refresh_from_db(using=journal)
    assert (late.state, runs.claim(late.pk), runs.ready(late.run_id)) == (State.QUEUED, None, [early.pk])
    runs.note(runs.claim(early.pk), moment=timezone.now())
    again = runs.claim(late.pk)
    assert again.token > walked.token
    assert not runs.complete(runs.Claim(step=late.pk, token=walked.token), {})


def test_who_is_claiming_while_the_earlier_moment_goes_gets_nothing(journal, monkeypatch):
    early, late = two_phases()
    first = runs.claim(early.pk)
    runs.note(first, moment=timezone.now())

    def meanwhile():
        assert runs.release(first)
        return "worker"

    monkeypatch.setattr(steps, "holder", meanwhile)
    assert runs.claim(late.pk) is None
