"""Faults by hand on the nodes of pytest-celery's ``celery_setup``: real workers and a private broker, no containers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytest_celery import CeleryBrokerCluster, CeleryTestBroker, CeleryTestSetup, CeleryWorkerCluster

from tests.faults.rounds.brokers import bring_up
from tests.integration.sqlite_projects import sqlite_project
from tests.projects import Project, wait_until, worker_node
from tests.services.servers import Redis

LEASE = 4


class RedisNode:
    """A private Redis in the shape of pytest-celery's containers."""

    def __init__(self, directory: Path) -> None:
        self.service = Redis(directory, lives_on=False)
        bring_up(self.service)
        self.id = f"redis-{self.service.port:08}"
        self.name = "redis"
        self.url = f"{self.service.server().url}/0"

    @property
    def status(self) -> str:
        return "running"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {"url": self.url, "host_url": self.url}

    def logs(self) -> str:
        return self.service.log_tail()

    def ready(self) -> bool:
        self.service.wait_until_ready()
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        self.service.stop()

    def restart(self, timeout: float = 60) -> None:
        self.service.stop()
        self.service.start()
        self.service.wait_until_ready()

    def reload(self) -> None:
        """Nothing is cached here."""

    def teardown(self) -> None:
        self.service.stop()


@pytest.fixture
def celery_broker_cluster() -> Iterator[CeleryBrokerCluster]:
    directory = Path(tempfile.mkdtemp(prefix="snapshots-", dir="/tmp"))  # the server's own user must reach it
    directory.chmod(0o755)
    node = RedisNode(directory)
    yield CeleryBrokerCluster(CeleryTestBroker(node, app=None))  # type: ignore[arg-type]
    node.teardown()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def celery_backend_cluster() -> None:
    return None


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """What the storage is told, and what it says."""
    path = tmp_path / "control"
    path.mkdir()
    return path


@pytest.fixture
def project(tmp_path: Path, celery_broker_cluster: CeleryBrokerCluster, control: Path) -> Project:
    """Two SQLite aliases, a storage that obeys orders, and results in the same Redis."""
    directory = tmp_path / "project"
    directory.mkdir()
    project = sqlite_project(directory, LEASE=LEASE, ARTIFACTS=["database"], SWEEP_GRACE=0)
    project.broker = project.results = celery_broker_cluster[0].container.celeryconfig["url"]
    project.snapshots["STORAGE"] = {
        "BACKEND": "tests.faults.rounds.storage.FaultyStorage",
        "OPTIONS": {"location": str(project.storage), "control": str(control)},
    }
    project.extra_environment["DJANGO_SETTINGS_MODULE"] = "tests.faults.rounds.settings"
    return project


@pytest.fixture
def celery_worker_cluster(project: Project) -> Iterator[CeleryWorkerCluster]:
    nodes = [worker_node(project), worker_node(project)]
    cluster = CeleryWorkerCluster(*nodes)
    assert cluster.ready()
    yield cluster
    for node in nodes:
        node.teardown()


def begun(project: Project, control: Path, phase: str, name: str = "nightly") -> str:
    """Ask for a snapshot, and wait until a worker stands at *phase*; return its task's id."""
    (control / "orders.json").write_text(json.dumps({"pause": phase}))
    task = project.call(f"answer = snapshot.delay({name!r}).id")
    wait_until((control / "paused").exists, f"a worker to come to {phase}")
    return str(task)


def standing(control: Path) -> int:
    """The process that waits at its phase."""
    return int((control / "paused").read_text())


def node_of(celery_setup: CeleryTestSetup, pid: int) -> Any:
    """The node whose child *pid* is."""
    return next(
        node
        for node in celery_setup.worker_cluster
        if pid in {child.pid for child in psutil.Process(node.container.pid).children()}
    )


def ended(project: Project, task: str, *, sweeping: bool = True) -> Any:
    """The result of the task, while somebody does what beat does."""
    return project.call(
        "from celery.result import AsyncResult\nimport time\nfrom django_snapshots import tasks\n"
        f"result, end = AsyncResult({task!r}), time.monotonic() + 60\n"
        "while not result.ready() and time.monotonic() < end:\n"
        f"    {sweeping} and tasks.sweep.apply_async(expires=5)\n"
        "    time.sleep(0.5)\n"
        "answer = result.get(timeout=5)"
    )


def test_the_other_worker_takes_over_from_one_that_is_killed(
    celery_setup: CeleryTestSetup, project: Project, control: Path
) -> None:
    task = begun(project, control, "dump-first")
    node_of(celery_setup, standing(control)).kill("SIGKILL")
    assert ended(project, task)["name"] == "nightly"
    assert project.call("answer = django_snapshots.verify_snapshot('nightly')")["level"] == 2
    assert sorted(step["attempts"] for step in project.steps() if step["run__kind"] == "snapshot") == [1, 2]
    assert [name for name in project.stored() if "-" in name] == []


def test_a_worker_that_is_stopped_softly_gives_its_step_back_at_once(
    celery_setup: CeleryTestSetup, project: Project, control: Path
) -> None:
    task = begun(project, control, "dump-first")
    node = node_of(celery_setup, standing(control))
    os.kill(node.container.pid, signal.SIGQUIT)
    # Nobody sweeps: the step comes back by its own message, long before its lease would be over.
    assert ended(project, task, sweeping=False)["name"] == "nightly"
    assert [step["attempts"] for step in project.steps()] == [1, 1]
    wait_until(lambda: node.container.status == "exited", "the worker to end")
    node.restart()
    assert node.container.ready()


def test_a_dump_goes_on_while_its_broker_is_away(
    celery_setup: CeleryTestSetup, project: Project, control: Path
) -> None:
    task = begun(project, control, "dump-first")
    pid = standing(control)
    celery_setup.broker.container.service.stop()
    (control / "go").touch()
    steps = "from django_snapshots.models import Step\nanswer = Step.objects.filter(state='succeeded').count()"
    wait_until(lambda: project.call(steps) >= 1, "the step to end without a broker")
    assert psutil.pid_exists(pid)
    celery_setup.broker.container.service.start()
    celery_setup.broker.container.ready()
    assert ended(project, task)["name"] == "nightly"
    assert [step["attempts"] for step in project.steps()] == [1, 1]


def test_a_worker_that_slept_past_its_lease_harms_nothing(
    celery_setup: CeleryTestSetup, project: Project, control: Path
) -> None:
    """Asleep in front of the move of an object, the manifest, or behind it; another one finishes; it wakes up."""
    for phase in ("move", "manifest", "listed"):
        for path in control.iterdir():
            path.unlink()
        task = begun(project, control, phase, name=phase)
        asleep = psutil.Process(standing(control))
        asleep.suspend()
        (control / "go").touch()
        try:
            assert ended(project, task)["name"] == phase
        finally:
            asleep.resume()
        wait_until(lambda process=asleep: process.status() == psutil.STATUS_SLEEPING, "it to have nothing more to do")
        assert project.call(f"answer = django_snapshots.verify_snapshot({phase!r})")["level"] == 2
    runs = project.runs()
    assert {run["state"] for run in runs} == {"succeeded"}
