"""The ``filesystem://`` broker: what is said to a process that has ended is said to nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

from django_snapshots import filesystem_broker
from tests.databases import Maker
from tests.integration.conftest import Broker, entry
from tests.integration.pages import the_block
from tests.projects import ROOT, Project, WorkerProcess, wait_until

NODE = "snapshots@here"
Start = Callable[..., WorkerProcess]


@pytest.fixture
def project(filesystem_broker: Broker, make_sqlite: Maker, tmp_path: Path) -> Project:
    """A migrated project of one database with this broker."""
    made = Project(
        directory=tmp_path / "project",
        databases={"default": entry(make_sqlite())},
        broker=filesystem_broker.url,
        celery=filesystem_broker.settings,
    )
    made.migrate()
    return made


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    """``start(node=NODE, **options)`` -> a worker that is ready."""
    workers = []

    def start(node: str = NODE, **options: Any) -> WorkerProcess:
        workers.append(WorkerProcess(project, node=node, **options))
        workers[-1].ready()
        return workers[-1]

    yield start
    for worker in workers:
        worker.teardown()


def messages(project: Project, ending: str) -> list[str]:
    folder = Path(project.celery["BROKER_TRANSPORT_OPTIONS"]["data_folder_in"])
    return [path.name for path in folder.iterdir() if path.name.endswith(ending)]


def bindings(project: Project, exchange: str) -> list[str]:
    folder = Path(project.celery["BROKER_TRANSPORT_OPTIONS"]["control_folder"])
    return [binding[2] for binding in json.loads((folder / f"{exchange}.exchange").read_text())]


def takes_a_snapshot(project: Project) -> bool:
    project.call("snapshot.delay(artifacts=['database'])")
    return bool(wait_until(lambda: [run["state"] for run in project.runs()][-1] == "succeeded", "the snapshot"))


@pytest.mark.parametrize(
    ("asked", "destination"), [("while it is down", [NODE]), ("before it was killed", None)], ids=["down", "before"]
)
def test_a_request_to_shut_down_does_not_end_the_next_worker_of_that_name(
    project: Project, start: Start, asked: str, destination: list[str] | None
) -> None:
    shut_down = f"app.control.shutdown(destination={destination!r})"
    killed = start()
    if asked == "while it is down":
        killed.kill()
        project.call(shut_down)
        assert messages(project, ".pidbox.msg") == []
        assert bindings(project, "celery.pidbox") == []
    else:
        # It lives, but does not read.
        killed.send(signal.SIGSTOP)
        project.call(shut_down)
        assert len(messages(project, ".pidbox.msg")) == 1
        killed.kill()

    following = start()

    assert takes_a_snapshot(project)
    assert following.status == "running"
    assert project.call(f"answer = app.control.ping(destination=[{NODE!r}], timeout=10, limit=1)") == [
        {NODE: {"ok": "pong"}}
    ]
    assert messages(project, ".pidbox.msg") == []


def test_a_worker_that_lives_is_still_told_to_shut_down(project: Project, start: Start) -> None:
    worker = start()
    project.call("app.control.shutdown()")
    wait_until(lambda: worker.status == "exited", "the worker to end")
    assert messages(project, ".pidbox.msg") == []


def test_events_are_not_kept_for_a_monitor_that_has_ended(project: Project, start: Start) -> None:
    """Every worker has an event every two seconds, as long as somebody listens."""
    monitor = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.celery_app", "events", "--dump"],
        env=project.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        start()
        assert monitor.stdout is not None
        with monitor.stdout:
            while b"heartbeat" not in (line := monitor.stdout.readline()):
                assert line, "the monitor has ended"
    finally:
        monitor.kill()
        monitor.wait()
    wait_until(lambda: bindings(project, "celeryev") == [], "the binding to be forgotten")
    assert [name for name in messages(project, ".msg") if "celeryev" in name] == []


def test_two_workers_of_one_name_are_warned_of(project: Project, start: Start) -> None:
    first = start()
    second = start()
    assert "already using this process mailbox" in second.logs()
    assert "already using this process mailbox" not in first.logs()
    first.kill("SIGTERM")
    second.kill("SIGTERM")
    assert "already using this process mailbox" not in start().logs()


# Without a worker


@pytest.fixture
def connection(filesystem_broker: Broker) -> Iterator[Connection]:
    """A connection of this process."""
    with connect(filesystem_broker.settings["BROKER_TRANSPORT_OPTIONS"]) as made:
        yield made


def connect(options: dict[str, Any]) -> Connection:
    return Connection("filesystem://localhost", transport=filesystem_broker.Transport, transport_options=options)


def box(name: str, **options: Any) -> Queue:
    return Queue(name, Exchange("boxes", type="fanout", durable=False), **options)


def files(connection: Connection) -> list[str]:
    return sorted(path.name for path in Path(connection.transport_options["data_folder_in"]).iterdir())


def publish(connection: Connection, body: Any) -> None:
    connection.Producer().publish(body, exchange="boxes")


OWNER = """
import json, os, sys, time
from tests.integration.test_filesystem_broker import box, connect
connection = connect(json.loads(sys.argv[1]))
box(sys.argv[2], exclusive=True)(connection.default_channel).declare()
child = 0 if sys.argv[3] == "alone" else os.fork()
if child or sys.argv[3] == "alone":
    print(child, flush=True)
elif sys.argv[3] == "exec":
    os.execlp("sleep", "sleep", "30")
time.sleep(30)
"""


@pytest.fixture(params=["alone", "fork", "exec"])
def owner(connection: Connection, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the queue ``theirs``: it has no child, one that is its copy, or one that is a program."""
    argv = [sys.executable, "-c", OWNER, json.dumps(connection.transport_options), "theirs", request.param]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.stdout.close()
        process.kill()
        process.wait()
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_queue_ends_with_its_process_and_not_with_that_ones_children(
    connection: Connection, owner: subprocess.Popen[bytes]
) -> None:
    kept = f"kept-{os.urandom(4).hex()}"  # kombu remembers what this process has bound already
    box(kept, durable=True)(connection.default_channel).declare()
    publish(connection, "one")
    assert {name.partition(".")[2] for name in files(connection)} == {f"{kept}.msg", "theirs.msg"}

    owner.kill()
    owner.wait()

    publish(connection, "two")
    assert [name.partition(".")[2] for name in files(connection)] == [f"{kept}.msg"] * 2
    folder = Path(connection.transport_options["control_folder"])
    assert [binding[2] for binding in json.loads((folder / "boxes.exchange").read_text())] == [kept]
    assert list(folder.glob("*.owner")) == []


def test_a_queue_that_is_deleted_takes_its_messages_along(connection: Connection) -> None:
    mine = box("mine", exclusive=True)(connection.default_channel)
    mine.declare()
    publish(connection, "one")
    mine.delete()
    publish(connection, "two")
    assert files(connection) == []
    mine.declare()
    publish(connection, "three")
    message = mine.get(no_ack=True)
    assert message is not None and message.payload == "three"


def test_messages_keep_their_order_over_a_reboot(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = connection.SimpleQueue("ordered")
    queue.put("before")
    monkeypatch.setattr(time, "monotonic", lambda: 0.5)
    queue.put("after")
    monkeypatch.undo()
    assert [queue.get().payload for _ in range(2)] == ["before", "after"]


def test_the_pages_settings_make_the_broker(tmp_path: Path) -> None:
    block = the_block("docs/reference/checks.md", "A broker without a server", "python")
    settings: dict[str, Any] = {}
    exec(block.replace("/var/lib/project", str(tmp_path)), settings)
    app = Celery("page", set_as_current=False)
    app.config_from_object(
        {key.removeprefix("CELERY_").lower(): value for key, value in settings.items() if key.startswith("CELERY_")}
    )
    with app.connection_for_write() as made:
        assert isinstance(made.transport, filesystem_broker.Transport)
        made.SimpleQueue("words").put("here")
        assert made.SimpleQueue("words").get().payload == "here"
    assert (tmp_path / "broker" / "messages").stat().st_mode & 0o777 == 0o700
    app.close()


def test_what_was_delivered_long_ago_is_thrown_away(connection: Connection) -> None:
    folder = Path(connection.transport_options["processed_folder"])
    for name, age in (("old.msg", 3700), ("new.msg", 3500)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    connection.connect()
    assert [path.name for path in folder.iterdir()] == ["new.msg"]
