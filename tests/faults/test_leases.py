"""What keeps an attempt, and what ends it, by real clocks, on every engine that may hold the journal.

A journal that is away, tools and storages that hang, workers that are killed.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from django_snapshots import execution, list_snapshots, runs
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import Request
from django_snapshots.testing import MemoryStorage
from tests.faults.outages import Forwarder, LockedFile
from tests.faults.outages import Kind as Artifact
from tests.integration import conftest as integration
from tests.integration.conftest import entry
from tests.projects import Project, wait_until, worker_node

broker_url = integration.broker_url

SHORT, LONG = 2, 12
"""Leases: one that is soon over, and one that lasts longer than any outage here."""


class _Router:
    """Puts the journal, and nothing else, into one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model, **hints):
        return self.alias if model._meta.app_label == "django_snapshots" else None

    db_for_write = db_for_read


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def engine(request) -> str:
    return request.param


@pytest.fixture
def journal(engine, request, settings) -> str:
    """The alias of a real database with the journal's tables."""
    options = {"OPTIONS": {"timeout": 0.2}} if engine == "sqlite" else {}
    alias = request.getfixturevalue(f"make_{engine}")(**options)
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = [_Router(alias)]
    return alias


@pytest.fixture
def line(engine, journal, request, settings) -> Iterator[Forwarder | LockedFile]:
    """What lies between this process and the journal."""
    database = settings.DATABASES[journal]
    connections[journal].close()
    if engine == "sqlite":
        made: Any = LockedFile(database["NAME"])
    else:
        made = Forwarder(database["HOST"], int(database["PORT"]))
        database["HOST"], database["PORT"] = "127.0.0.1", str(made.port)
        connections[journal].settings_dict.update(HOST="127.0.0.1", PORT=str(made.port))
    yield made
    made.close()
    connections[journal].close()


def mend(line, journal) -> None:
    """End the outage; this thread's own connection, which it has cost, is made anew."""
    line.mend()
    connections[journal].close()


class Waiting(Artifact):
    """Begins, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.goes_on = threading.Event()

    def chunks(self, request):
        yield b"one"
        self.begun.set()
        assert self.goes_on.wait(60)
        yield b"two"


class Tool(Artifact):
    """Its program says nothing, and doesn't end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.died_at: datetime | None = None

    def chunks(self, request):
        self.tool = request.processes.start(["/bin/sleep", "600"])
        yield b"one"
        self.begun.set()
        yield from self.tool.chunks()
        self.died_at = datetime.now(UTC)
        raise SnapshotError(self.tool.explain())


@pytest.fixture
def storage(settings) -> MemoryStorage:
    return MemoryStorage()


def project_of(settings, storage, kind, **limits) -> None:
    settings.SNAPSHOTS = {"STORAGE": storage, "ARTIFACTS": [kind], **limits}


def asked(name: str = "a") -> Step:
    """The only step of a new run, that workers do."""
    run, _ = runs.begin(Kind.SNAPSHOT, Request(name=name))
    (step,) = execution.launch(run)
    return step


@pytest.fixture
def worker() -> Iterator[Any]:
    """``worker(step)`` works on it in a thread of its own; the future holds what ``work`` returns."""
    with ThreadPoolExecutor(1) as pool:

        def work(step: Step) -> Future[uuid.UUID | None]:
            def move() -> uuid.UUID | None:
                try:
                    return execution.work(step.pk)
                finally:
                    connections.close_all()

            return pool.submit(move)

        yield work


def test_a_journal_that_is_away_for_less_than_the_lease_costs_nothing(
    journal, line, storage, settings, worker, caplog
) -> None:
    kind = Waiting()
    project_of(settings, storage, kind, LEASE=LONG)
    step = asked()
    working = worker(step)
    assert kind.begun.wait(30)
    line.cut()
    wait_until(lambda: "The journal does not answer" in caplog.text, "a heartbeat to find the journal away")
    mend(line, journal)
    kind.goes_on.set()
    run = working.result(60)
    assert run is not None
    execution.finish(run)
    step.refresh_from_db(using=journal)
    assert (step.state, step.attempts, step.token) == (State.SUCCEEDED, 1, 1)
    assert [entry.name for entry in list_snapshots(storage)] == ["a"]


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_an_attempt_ends_before_its_lease_can_be_anothers(journal, line, storage, settings, worker, how) -> None:
    """Also when the journal doesn't refuse, but says nothing at all."""
    kind = Tool()
    project_of(settings, storage, kind, LEASE=LONG / 2)
    step = asked()
    working = worker(step)
    assert kind.begun.wait(30)
    getattr(line, how)()
    wait_until(lambda: kind.died_at is not None, "the attempt's program to be ended", 30)
    mend(line, journal)
    assert working.result(60) is None, "an attempt that has lost its lease says nothing"
    step.refresh_from_db(using=journal)
    assert kind.died_at < step.lease_until
    assert (step.state, step.error) == (State.RUNNING, "")
    assert list_snapshots(storage) == []
    wait_until(lambda: runs.end_dead_steps(runs.get(step.run_id)), "the lease to be over", 30)
    step.refresh_from_db(using=journal)
    assert (step.state, step.token) == (State.QUEUED, 1)


def test_a_tool_that_says_nothing_is_ended_by_the_stall_limit(journal, storage, settings, worker) -> None:
    kind = Tool()
    project_of(settings, storage, kind, LEASE=LONG, STALL_LIMIT=1)
    step = asked()
    run = worker(step).result(60)
    execution.finish(run)
    ended = runs.get(run)
    assert ended.state == State.FAILED
    assert "Nothing has moved for" in ended.error
    assert 'SNAPSHOTS["STALL_LIMIT"]' in ended.error
    assert not kind.tool.running()
    assert [path for path in storage.objects if "thing" in path] == []


@pytest.fixture
def project(engine, journal, tmp_path, settings) -> Project:
    """A project of other processes with the same journal and storage."""
    made = Project(directory=tmp_path / "project", databases={"default": entry(journal)})
    made.snapshots = {
        "ARTIFACTS": ["tests.faults.outages.Killing"],
        "LEASE": SHORT,
        "ATTEMPTS": 2,
    }
    settings.SNAPSHOTS = {**made.snapshots, "STORAGE": _local(made)}
    return made


def _local(project: Project) -> Any:
    from django_snapshots.storage import LocalFileSystemBackend

    return LocalFileSystemBackend(location=str(project.storage))


def test_a_step_that_kills_each_of_its_workers_ends_the_run(journal, project) -> None:
    step = asked()
    work = "import django; django.setup()\nfrom django_snapshots import execution\nexecution.work({})"
    for attempt in (1, 2):
        killed = project.run("-c", work.format(step.pk))
        assert killed.returncode == -9, killed.stdout + killed.stderr
        step.refresh_from_db(using=journal)
        assert (step.state, step.attempts) == (State.RUNNING, attempt)
        wait_until(lambda: runs.end_dead_steps(runs.get(step.run_id)), "the lease to be over", 30)
        if attempt == 1:
            wait_until(lambda: runs.sweep().begin == [step.pk], "the step to be begun anew", 30)
    swept = wait_until(lambda: runs.sweep().finish, "the run to be finished", 30)
    execution.finish(*swept)
    ended = runs.get(step.run_id)
    assert ended.state == State.FAILED
    assert "each of its 2 attempts" in ended.error
    assert "memory" in ended.error
    assert list_snapshots() == []
    assert [path for path in project.stored() if "thing" in path] == []


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_storage_that_hangs_costs_its_process_and_ends_the_run(journal, project, broker_url) -> None:
    project.broker = broker_url
    project.snapshots = {
        "STORAGE": {
            "BACKEND": "tests.faults.outages.HangingStorage",
            "OPTIONS": {"location": str(project.storage)},
        },
        "ARTIFACTS": ["tests.faults.outages.Kind"],
        "LEASE": SHORT,
        "STALL_LIMIT": 1,
    }
    worker = worker_node(project)
    try:
        assert worker.ready()
        project.call("answer = snapshot.delay('a').id")
        run = wait_until(lambda: Run.objects.using(journal).first(), "the run")
        step = wait_until(lambda: Step.objects.using(journal).exclude(holder="").first(), "a worker to take the step")
        process = int(step.holder.split(":")[1])
        wait_until(lambda: not _lives(process), "the process that hangs to be ended")
        swept = wait_until(lambda: runs.sweep().finish, "the run to be finished", 30)
        execution.finish(*swept)
        ended = runs.get(run.pk)
        assert ended.state == State.FAILED
        assert "Nothing has moved for" in ended.error
        assert list_snapshots() == []
        # Another process of the pool has taken its place.
        assert worker.ready()
    finally:
        worker.teardown()


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
