"""``snapshot.delay()``: in the journal before it is in the broker, and whole or not at all in a transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.sqlite_projects import query, sqlite_project
from tests.projects import Project, WorkerProcess, wait_until

NOBODY = "redis://:hidden@127.0.0.1:1/0"
"""A broker that is not there: nothing listens on port 1."""


@pytest.fixture
def project(tmp_path: Path, broker_url: str) -> Project:
    """Two SQLite aliases and a Redis without a worker."""
    project = sqlite_project(tmp_path, LEASE=4)
    project.broker = project.results = broker_url
    project.extra_environment["DJANGO_SETTINGS_MODULE"] = "tests.faults.rounds.settings"
    return project


@pytest.fixture
def queue(broker_url: str) -> Iterator[redis.Redis[Any]]:
    with redis.Redis.from_url(broker_url) as client:
        yield client


def waiting(queue: redis.Redis[Any]) -> int:
    """Messages that nobody has taken."""
    return int(queue.llen("snapshots"))


def test_the_run_is_there_before_anybody_takes_the_message(project: Project, queue: redis.Redis[Any]) -> None:
    task = project.call("answer = snapshot.delay('nightly', databases=['default']).id")
    (run,) = project.runs()
    assert (run["id"], run["state"], run["name"], run["requested_from"]) == (task, "queued", "nightly", "task")
    assert run["request"] == {"name": "nightly", "databases": ["default"]}
    assert waiting(queue) == 1
    # It waits for a worker as long as it takes: nobody may sweep.
    message = json.loads(queue.lindex("snapshots", 0))
    assert message["headers"]["expires"] is None


def test_a_request_outlives_a_broker_that_is_away_or_forgets(project: Project, queue: redis.Redis[Any]) -> None:
    broker, project.broker = project.broker, NOBODY
    first = project.call("answer = snapshot.delay('away', artifacts=['database']).id")
    project.broker = broker
    second = project.call("answer = snapshot.delay('forgotten', artifacts=['database'], wait=60).id")
    assert waiting(queue) == 1
    queue.flushdb()
    worker = WorkerProcess(project)
    try:
        worker.ready()
        query(project, "default", "UPDATE django_snapshots_run SET touched_at = '2026-01-01', hinted_at = NULL")
        project.must("snapshots", "sweep")
        for task, name in ((first, "away"), (second, "forgotten")):
            got = project.call(
                f"from celery.result import AsyncResult\nanswer = AsyncResult({task!r}).get(timeout=60)['name']"
            )
            assert got == name
    finally:
        worker.teardown()
    assert [run["state"] for run in project.runs()] == ["succeeded", "succeeded"]


def test_in_a_transaction_it_is_sent_when_that_is_committed(project: Project, queue: redis.Redis[Any]) -> None:
    code = (
        "from django.db import transaction\nfrom django_snapshots.models import Run\nimport redis\n"
        f"queue = redis.Redis.from_url({project.broker!r})\nanswer = []\n"
        "try:\n    with transaction.atomic():\n        snapshot.delay('never')\n        raise ValueError\n"
        "except ValueError:\n    answer.append((Run.objects.count(), queue.llen('snapshots')))\n"
        "with transaction.atomic():\n    snapshot.delay('later')\n    answer.append(queue.llen('snapshots'))\n"
        "answer.append((Run.objects.count(), queue.llen('snapshots')))\n"
    )
    assert project.call(code) == [[0, 0], 0, [1, 1]]


def test_a_queue_that_is_named_is_the_one(project: Project, queue: redis.Redis[Any]) -> None:
    """By code, or by an operator in a periodic task; in a transaction too."""
    project.call(
        "from django.db import transaction\nsnapshot.apply_async(queue='elsewhere', serializer='yaml')\n"
        "with transaction.atomic():\n    snapshot.apply_async(queue='elsewhere')"
    )
    assert (waiting(queue), queue.llen("elsewhere")) == (0, 2)


def test_what_nobody_begins_in_time_is_not_begun(project: Project, queue: redis.Redis[Any]) -> None:
    project.call("snapshot.apply_async(('late',), expires=60)")
    project.must("snapshots", "sweep")
    assert [run["state"] for run in project.runs()] == ["queued"]
    query(project, "default", "UPDATE django_snapshots_run SET expires_at = '2026-01-01'")
    project.must("snapshots", "sweep")
    (run,) = project.runs()
    assert run["state"] == "failed"
    assert "No worker took it in time" in run["error"]


def test_arguments_that_no_run_can_have_are_refused_at_once(project: Project, queue: redis.Redis[Any]) -> None:
    refused = project.call("answer = snapshot.delay('../up').id")
    assert refused["type"] == "SnapshotConfigurationError"
    assert project.runs() == []
    assert waiting(queue) == 0


def test_without_a_journal_there_is_the_message_alone(project: Project, queue: redis.Redis[Any]) -> None:
    for table in ("lock", "housekeeping", "step", "run"):
        query(project, "default", f"DROP TABLE django_snapshots_{table}")
    project.call("answer = snapshot.delay('nightly').id")
    assert waiting(queue) == 1


def test_a_worker_that_is_there_takes_it(project: Project, queue: redis.Redis[Any]) -> None:
    worker = WorkerProcess(project)
    try:
        worker.ready()
        assert project.call("answer = snapshot.delay('nightly').get(timeout=60)['name']") == "nightly"
        wait_until(lambda: waiting(queue) == 0, "the queue to be empty")
    finally:
        worker.teardown()
    assert len(project.runs()) == 1


def test_whoever_waits_learns_at_once_of_a_cancel(project: Project, queue: redis.Redis[Any]) -> None:
    """Nobody has begun it, so nobody else would say so."""
    told = project.call(
        "pending = snapshot.delay('nightly')\n"
        "django_snapshots.cancel_run(pending.id, by='olga')\n"
        "try:\n    pending.get(timeout=20)\n"
        "except SnapshotError as error:\n    answer = [type(error).__name__, str(error)]"
    )
    assert told == ["SnapshotCancelled", "Cancelled by olga."]
