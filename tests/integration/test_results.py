"""``.status``, ``.info`` and ``.get()`` of a task, through a real worker: with Redis, with a database, with nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.transfer import Dump
from tests.integration.sqlite_projects import sqlite_project
from tests.projects import Project, WorkerProcess

CONNECTOR = "tests.integration.test_results.ToldConnector"


class ToldConnector:
    """Its dump goes on, slowly, until there is a file ``go`` or ``fail`` in the meeting place."""

    @contextlib.contextmanager
    def open_dump(self, alias, request):
        place = Path(os.environ["MEETING_PLACE"])

        def chunks():
            import time

            for _ in range(6000):
                yield b"x" * 1000
                if (place / "fail").exists():
                    raise SnapshotConnectorError(f"shopdump failed for {alias!r}: ORA-00942")
                if (place / "go").exists():
                    return
                time.sleep(0.02)  # the throttle

        yield Dump(suffix="x", started_at=datetime.now(UTC), chunks=chunks(), metadata=dict)

    def target(self, subject):
        raise NotImplementedError

    def prepare(self, subject, source, request):
        raise NotImplementedError


def made(directory: Path, broker_url: str, results: str) -> Project:
    project = sqlite_project(directory, DATABASE_CONNECTORS={"other": CONNECTOR})
    project.broker, project.results = broker_url, results
    project.extra_environment["MEETING_PLACE"] = str(directory)
    return project


@contextlib.contextmanager
def a_worker(project: Project) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(project)
    try:
        worker.ready()
        yield worker
    finally:
        worker.teardown()


@pytest.fixture(params=["redis", "django-db"])
def project(request, tmp_path, broker_url):
    """A project whose worker dumps until it is told how to end."""
    project = made(tmp_path, broker_url, broker_url if request.param == "redis" else "django-db")
    if request.param == "django-db":
        project.must("migrate", "django_celery_results", "-v0")
    return project


FOLLOW = """
import pathlib, time
result = snapshot.delay('slow', databases=['other'], artifacts=['database'])
end = time.monotonic() + 90
while result.status != 'PROGRESS' or not result.info['bytes']:
    assert time.monotonic() < end, (result.status, result.info)
    time.sleep(0.1)
seen = {**result.info, 'id': result.id}
pathlib.Path(%r).touch()
try:
    got = result.get(timeout=60)
except SnapshotError as error:
    got = [type(error).__name__, str(error)]
answer = [seen, got, result.status, result.info if result.successful() else repr(result.info)]
"""


def test_a_snapshots_progress_is_its_tasks_info_and_its_manifest_the_result(project, tmp_path):
    with a_worker(project):
        seen, got, status, info = project.call(FOLLOW % str(tmp_path / "go"))
    assert (seen["run"], seen["kind"], seen["name"]) == (seen["id"], "snapshot", "slow")
    assert (seen["steps"], seen["ended"]) == (1, 0)
    assert seen["bytes"] >= 1000
    assert (status, got) == ("SUCCESS", info)
    assert set(got) == {"name", "run", "created_at", "size", "artifacts"}
    assert got == project.call("from django_snapshots.models import Run\nanswer = Run.objects.get().result")
    assert [item["filename"] for item in got["artifacts"]] == ["other.x.zst"]


def test_a_failed_snapshots_error_is_the_tasks(project, tmp_path):
    with a_worker(project):
        _, got, status, info = project.call(FOLLOW % str(tmp_path / "fail"))
    assert got[0] == "SnapshotConnectorError"
    assert "ORA-00942" in got[1]
    assert status == "FAILURE"
    assert "SnapshotConnectorError" in info
    assert project.stored() == []


def test_without_a_result_backend_the_result_says_so_and_the_run_goes_on(tmp_path, broker_url):
    project = made(tmp_path, broker_url, "")
    (tmp_path / "go").touch()
    asked = project.call(
        "from django_snapshots import request_restore\n"
        "result = snapshot.delay('quiet', databases=['other'], artifacts=['database'])\n"
        "answer = []\n"
        "for ask in (lambda: result.get(timeout=1), lambda: result.status, lambda: result.info, result.ready,\n"
        "            request_restore('nowhere').get):\n"
        "    try:\n"
        "        answer.append(ask())\n"
        "    except SnapshotError as error:\n"
        "        answer.append([type(error).__name__, str(error)])"
    )
    for kind, text in asked:
        assert kind == "SnapshotConfigurationError"
        assert "CELERY_RESULT_BACKEND" in text
        assert "snapshots status" in text
    with a_worker(project):
        answer = project.call(
            "import time\n"
            "from django_snapshots.models import Run\n"
            "end = time.monotonic() + 60\n"
            "while Run.objects.filter(state__in=['queued', 'running']).exists():\n"
            "    assert time.monotonic() < end\n"
            "    time.sleep(0.1)\n"
            "answer = sorted((run.kind, run.state, bool(run.told_at)) for run in Run.objects.all())"
        )
    assert answer == [["restore", "failed", True], ["snapshot", "succeeded", True]]
