"""Who would take a task: asked with real workers on each sort of broker, and with brokers that don't answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Broker
from tests.projects import Project, WorkerProcess
from tests.services.servers import HOST, free_port

ASK = """
from dataclasses import asdict
from django_snapshots.brokers import worker_report
report = worker_report(app, timeout=%s)
answer = {**asdict(report), "problems": report.problems}
"""


def asked(project: Project, timeout: float = 3) -> dict[str, Any]:
    return dict(project.call(ASK % timeout))


@pytest.fixture
def project(any_broker: Broker, tmp_path: Path) -> Project:
    return Project(
        directory=tmp_path / "project",
        databases={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")}},
        broker=any_broker.url,
        celery=any_broker.settings,
    )


@pytest.fixture
def workers(project: Project) -> Iterator[list[WorkerProcess]]:
    """Two on the queue, of which one has another queue too, and one on another queue."""
    made = [
        WorkerProcess(project, node="one@here"),
        WorkerProcess(project, node="two@here", queue="celery,snapshots"),
        WorkerProcess(project, node="other@here", queue="mail"),
    ]
    try:
        for worker in made:
            worker.ready()
        yield made
    finally:
        for worker in made:
            worker.kill() if worker.status == "running" else None


def test_the_workers_that_take_snapshots_are_named(project: Project, workers: list[WorkerProcess]) -> None:
    report = asked(project)
    assert report["error"] == "" and report["problems"] == [] and report["duplicated"] == []
    assert report["workers"] == ["one@here", "other@here", "two@here"]
    assert report["consuming"] == ["one@here", "two@here"]
    for worker in workers[:2]:
        worker.kill()
    report = asked(project)
    assert report["consuming"] == []
    (told,) = report["problems"]
    assert "No worker takes tasks from the queue 'snapshots'; other@here take others" in told
    workers[2].kill()
    (told,) = asked(project, timeout=1)["problems"]
    assert told.startswith("No worker answered. Start one: celery -A <project> worker -Q snapshots.")


@pytest.mark.parametrize("any_broker", ["redis"], indirect=True)
def test_two_workers_of_one_name_are_told(project: Project) -> None:
    made = [WorkerProcess(project, node="same@here"), WorkerProcess(project, node="same@here")]
    try:
        for worker in made:
            worker.ready()
        report = asked(project)
        assert (report["workers"], report["duplicated"]) == (["same@here"], ["same@here"])
        assert "More than one worker is called same@here" in report["problems"][0]
    finally:
        for worker in made:
            worker.kill()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("kind", ["down", "silent"])
def test_a_broker_that_does_not_answer_is_told_in_time(tmp_path: Path, silent: int, scheme: str, kind: str) -> None:
    port = silent if kind == "silent" else free_port()
    project = Project(
        directory=tmp_path,
        databases={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")}},
        broker=f"{scheme}://user:hunter2@{HOST}:{port}/0",
    )
    begun = time.monotonic()
    report = asked(project, timeout=1)
    assert time.monotonic() - begun < 20
    assert report["error"]
    (told,) = report["problems"]
    assert f"{HOST}:{port}" in told and "can't be reached" in told and "hunter2" not in told
    assert report["workers"] == []


def test_a_transport_that_nobody_knows_is_told(tmp_path: Path) -> None:
    project = Project(directory=tmp_path, databases={}, broker="carrier-pigeon://user:hunter2@loft/")
    (told,) = asked(project, timeout=1)["problems"]
    assert "No such transport: carrier-pigeon" in told and "hunter2" not in told
