"""Each sort of broker, with real workers: a snapshot is asked for, taken by another process, and its result found."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import Maker
from tests.integration.conftest import Broker, entry
from tests.projects import Project, WorkerProcess


@pytest.fixture
def project(any_broker: Broker, make_sqlite: Maker, tmp_path: Path) -> Project:
    """A migrated project of one database, with this broker, and a result backend that needs no server."""
    results = tmp_path / "results"
    results.mkdir()
    made = Project(
        directory=tmp_path / "project",
        databases={"default": entry(make_sqlite())},
        broker=any_broker.url,
        celery=any_broker.settings,
        results=f"file://{results}",
    )
    made.migrate()
    return made


@pytest.fixture
def worker(project: Project) -> Iterator[WorkerProcess]:
    """A worker of one slot."""
    process = WorkerProcess(project)
    try:
        process.ready()
        yield process
    finally:
        process.teardown()


def test_a_snapshot_goes_through_every_sort_of_broker(project: Project, worker: WorkerProcess) -> None:
    taken = project.call("answer = snapshot.delay().get(timeout=60)")
    assert {item["filename"] for item in taken["artifacts"]} >= {"default.sqlite3.zst", "requirements.txt"}
    (run,) = project.runs()
    assert (run["state"], uuid.UUID(run["id"])) == ("succeeded", uuid.UUID(taken["run"]))
    assert all(step["holder"] for step in project.steps())
    assert project.call("answer = django_snapshots.verify_snapshot()")["name"] == taken["name"]
