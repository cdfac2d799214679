"""The service as it is deployed: settings by environment, ``celery -A tasks`` in real processes, the admin."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import connections
from kombu import Connection

from tests.databases import Maker
from tests.projects import ROOT, wait_until
from tests.services import Server

SECRET = "$ecret with a dollar"
OWN_VARIABLES = ("DATABASE_URL", "CELERY_", "SNAPSHOTS_", "SECRET_KEY", "MEDIA_ROOT", "DATA_DIRECTORY", "DJANGO_")


class Service:
    """One service: an environment, and the commands that are run in it."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
        self.environment = {**inherited, "DATA_DIRECTORY": str(directory), **variables}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``python ARGUMENTS`` to its end."""
        return subprocess.run(
            [sys.executable, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    def must(self, *arguments: str) -> str:
        """``python -m tasks ARGUMENTS``, which has to succeed; its output."""
        done = self.run("-m", "tasks", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def setting(self, expression: str) -> Any:
        """What *expression* gives in a process of the service."""
        code = f"import json; from tasks import settings, app; print(json.dumps({expression}, default=str))"
        done = self.run("-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self) -> str:
        """The last line that it says when the settings can't work."""
        done = self.run("-m", "tasks", "check")
        assert done.returncode != 0
        return done.stderr.strip().splitlines()[-1]

    @contextlib.contextmanager
    def program(self, *arguments: str, ready: str) -> Iterator[Path]:
        """``celery -A tasks ARGUMENTS``, from the moment that its log says *ready*; yields the log."""
        log = self.directory / f"{arguments[0]}-{secrets.token_hex(3)}.log"
        command = [sys.executable, "-m", "celery", "-A", "tasks", *arguments, "--loglevel=INFO"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=output, stderr=output)
        try:
            wait_until(lambda: ready in log.read_text() or process.poll() is not None, ready)
            assert process.poll() is None, log.read_text()
            self.process = process
            yield log
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()

    def worker(self) -> contextlib.AbstractContextManager[Path]:
        """A worker of two processes, started as the README says."""
        return self.program("worker", "-n", f"test-{secrets.token_hex(3)}@%h", "--concurrency=2", ready=" ready.")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A service with nothing but a secret key and a directory."""
    return Service(tmp_path / "data", SECRET_KEY=SECRET)


# Settings


def test_the_service_needs_a_secret_key_and_says_how_to_make_one(tmp_path: Path) -> None:
    said = Service(tmp_path / "data").refused()
    assert "SECRET_KEY is not set" in said and "SECRET_KEY_FILE" in said and "token_urlsafe" in said
    worker = Service(tmp_path / "data").run("-m", "celery", "-A", "tasks", "worker")
    assert worker.returncode != 0
    assert "SECRET_KEY is not set" in worker.stderr


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    (tmp_path / "url").write_text("postgres://anna:p%40ss%2Fword@db.example:5433/shop?sslmode=require\n")
    service = Service(
        tmp_path / "data", SECRET_KEY_FILE=str(tmp_path / "key"), DATABASE_URL_LEGACY_FILE=str(tmp_path / "url")
    )
    assert service.setting("settings.SECRET_KEY") == SECRET
    legacy = service.setting("settings.DATABASES['legacy']")
    assert legacy["PASSWORD"] == "p@ss/word"
    assert (legacy["NAME"], legacy["PORT"], legacy["OPTIONS"]) == ("shop", 5433, {"sslmode": "require"})
    missing = Service(tmp_path / "data", SECRET_KEY_FILE=str(tmp_path / "nowhere"))
    assert f"SECRET_KEY_FILE names {tmp_path / 'nowhere'}: No such file" in missing.refused()


def test_every_alias_has_its_url(tmp_path: Path) -> None:
    service = Service(
        tmp_path / "data",
        SECRET_KEY=SECRET,
        DATABASE_URL="postgres://a:b@c/d",
        DATABASE_URL_LEGACY="mysql://a:b@c:3307/d",
        DATABASE_URL_OLD_ARCHIVE=f"sqlite:///{tmp_path}/old.sqlite3?timeout=7",
    )
    found = service.setting("settings.DATABASES")
    assert {alias: entry["ENGINE"].rpartition(".")[2] for alias, entry in found.items()} == {
        "default": "postgresql",
        "legacy": "mysql",
        "old_archive": "sqlite3",
    }
    assert found["old_archive"]["NAME"] == f"{tmp_path}/old.sqlite3"
    assert found["old_archive"]["OPTIONS"] == {"timeout": 7, "transaction_mode": "IMMEDIATE"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"DATABASE_URL_DEFAULT": "sqlite:////tmp/x"}, "DATABASE_URL_DEFAULT can't name an alias"),
        ({"DATABASE_URL_LEGACY": "nonsense"}, "DATABASE_URL_LEGACY is not the URL of a database"),
        ({"DATABASE_URL_LEGACY": ""}, "DATABASE_URL_LEGACY is not the URL of a database"),
        ({"DATABASE_URL_LEGACY": "postgers://a:hidden@c/d"}, "DATABASE_URL_LEGACY is not the URL of a database"),
    ],
)
def test_a_url_that_can_not_work_is_refused_by_name(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    said = Service(tmp_path / "data", SECRET_KEY=SECRET, **variables).refused()
    assert words in said
    assert "hidden" not in said


def test_the_defaults_are_a_single_host_without_a_server(service: Service) -> None:
    assert service.setting("app.connection_for_write().transport.driver_type") == "filesystem"
    assert service.setting("app.conf.result_backend") == "django-db"
    assert service.setting("app.conf.beat_scheduler") == "django_celery_beat.schedulers:DatabaseScheduler"
    assert service.setting("settings.SNAPSHOTS['ARTIFACTS']") == ["database", "environment"]
    assert service.setting("settings.DEBUG") is False
    assert (service.directory / "broker" / "messages").stat().st_mode & 0o777 == 0o700


def test_the_environment_decides_about_broker_queue_and_snapshots(tmp_path: Path) -> None:
    service = Service(
        tmp_path / "data",
        SECRET_KEY=SECRET,
        CELERY_BROKER_URL="redis://:pass@cache.example/3",
        CELERY_RESULT_BACKEND="redis://:pass@cache.example/4",
        MEDIA_ROOT="/srv/media",
        ALLOWED_HOSTS="a.example,b.example",
        SNAPSHOTS_QUEUE="heavy",
        SNAPSHOTS_LOCATION="/srv/snapshots",
        SNAPSHOTS_ENVIRONMENT="production",
        SNAPSHOTS_ALLOW_RESTORE="false",
        HTTPS="true",
    )
    assert service.setting("[app.conf.broker_url, app.conf.broker_transport, app.conf.task_default_queue]") == [
        "redis://:pass@cache.example/3",
        None,
        "heavy",
    ]
    assert service.setting("settings.ALLOWED_HOSTS") == ["a.example", "b.example"]
    assert service.setting("[settings.SESSION_COOKIE_SECURE, settings.CSRF_COOKIE_SECURE]") == [True, True]
    found = service.setting("settings.SNAPSHOTS")
    assert found["STORAGE"]["OPTIONS"] == {"location": "/srv/snapshots"}
    assert found["ARTIFACTS"] == ["database", "media", "environment"]
    assert (found["QUEUE"], found["ENVIRONMENT"], found["ALLOW_RESTORE"]) == ("heavy", "production", False)


# Processes


def test_worker_and_beat_take_a_scheduled_snapshot(service: Service) -> None:
    service.must("migrate", "-v0")
    service.must(
        "shell",
        "-v0",
        "-c",
        "from django_celery_beat.models import IntervalSchedule, PeriodicTask;"
        "every = IntervalSchedule.objects.create(every=1, period='seconds');"
        "PeriodicTask.objects.create(name='once', task='django_snapshots.snapshot', interval=every, one_off=True,"
        ' kwargs=\'{"name": "by-beat"}\')',
    )
    with service.worker(), service.program("beat", ready="beat: Starting..."):
        wait_until(lambda: _runs(service), "the scheduled run")
    assert _runs(service) == [("snapshot", "by-beat", "succeeded")]
    assert "by-beat" in service.must("snapshots", "list")
    service.must("snapshots", "verify", "by-beat")


def _runs(service: Service) -> list[tuple[str, ...]]:
    """The journal's runs that have ended, by kind, name and state."""
    with contextlib.closing(sqlite3.connect(service.directory / "service.sqlite3")) as database:
        return database.execute("SELECT kind, name, state FROM django_snapshots_run WHERE finished_at").fetchall()


class Waits:
    """An artifact kind of a project's own, whose dump ends when somebody has made the file ``go``."""

    type = "waits"

    def dump(self, dest: Path) -> dict[str, Any]:
        folder = Path(os.environ["DATA_DIRECTORY"])
        (folder / "begun").touch()
        wait_until((folder / "go").exists, "go")
        dest.write_text("gone")
        return {}

    def restore(self, src: Path) -> None:
        """Nothing."""


@contextlib.contextmanager
def _worker_at_work(service: Service, *, seconds: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in the middle of a step, which is left so long when it is told to stop."""
    service.environment |= {
        "CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT": seconds,
        "CELERY_BROKER_POLLING_INTERVAL": "0.1",
        "SNAPSHOTS_ARTIFACTS": "tests.integration.test_service.Waits",
    }
    service.must("migrate", "-v0")
    service.must("shell", "-v0", "-c", "from django_snapshots.tasks import snapshot; snapshot.delay(name='held')")
    with service.worker():
        wait_until((service.directory / "begun").exists, "the step to begin")
        yield service.process


def _state_of_the_step(service: Service) -> str:
    with contextlib.closing(sqlite3.connect(service.directory / "service.sqlite3")) as database:
        ((state,),) = database.execute("SELECT state FROM django_snapshots_step")
    return str(state)


def test_a_worker_that_is_stopped_leaves_its_step_time_to_end(service: Service) -> None:
    with _worker_at_work(service, seconds="5") as process:
        process.send_signal(signal.SIGQUIT)
        (service.directory / "go").touch()
        assert process.wait(60) == 0
    assert _runs(service) == [("snapshot", "held", "succeeded")]


def test_a_worker_that_gets_sigterm_waits_for_its_step(service: Service) -> None:
    with _worker_at_work(service, seconds="0.1") as process:
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        (service.directory / "go").touch()
        assert process.wait(60) == 0
    assert _runs(service) == [("snapshot", "held", "succeeded")]


@pytest.mark.parametrize("broker", ["", "redis"])
def test_a_worker_that_is_stopped_gives_up_a_step_that_takes_too_long(
    service: Service, broker: str, broker_url: str
) -> None:
    if broker:
        service.environment["CELERY_BROKER_URL"] = broker_url
    with _worker_at_work(service, seconds="0.5") as process:
        assert _state_of_the_step(service) == "running"
        process.send_signal(signal.SIGQUIT)
        assert process.wait(60) == 0
    assert _state_of_the_step(service) != "running"


def test_three_engines_at_once_are_snapshotted_and_restored_by_a_worker(
    tmp_path: Path, postgres: Server, make_postgres: Maker, make_mariadb: Maker
) -> None:
    first, second = make_postgres(), make_mariadb()
    for alias in (first, second):
        _execute(alias, "CREATE TABLE fruit (id integer PRIMARY KEY, name varchar(50))")
        _execute(alias, "INSERT INTO fruit VALUES (1, 'quince'), (2, 'medlar')")
    service = Service(
        tmp_path / "data",
        SECRET_KEY=SECRET,
        DATABASE_URL_PG=_url("postgres", first),
        DATABASE_URL_MY=_url("mysql", second),
        CELERY_BROKER_POLLING_INTERVAL="0.1",
        PATH=f"{postgres.bin_directory}:{os.environ['PATH']}",  # pg_dump of the server's version
    )
    service.must("migrate", "-v0")
    assert _tables(first) == _tables(second) == ["fruit"], "the service's own tables are in default alone"
    names = [settings.DATABASES[first]["NAME"], settings.DATABASES[second]["NAME"]]
    with service.worker():
        taken = json.loads(service.must("snapshots", "backup", "three", "--queue", "--format", "json"))
        assert [item["metadata"]["database"] for item in taken["artifacts"] if item["type"] == "database"] == [
            "default",
            "my",
            "pg",
        ]
        for alias in (first, second):
            _execute(alias, "DELETE FROM fruit WHERE id = 1")
        confirm = [
            word for name in (*names, service.directory / "service.sqlite3") for word in ("--confirm", str(name))
        ]
        service.must("snapshots", "restore", "three", "--queue", "--no-input", *confirm)
    for alias in (first, second):
        connections[alias].close()
        assert _execute(alias, "SELECT id, name FROM fruit ORDER BY id") == [(1, "quince"), (2, "medlar")]
    assert {state for _, _, state in _runs(service)} == {"succeeded"}


def _url(scheme: str, alias: str) -> str:
    entry = settings.DATABASES[alias]
    user, password = (quote(entry[key], safe="") for key in ("USER", "PASSWORD"))
    return f"{scheme}://{user}:{password}@{entry['HOST']}:{entry['PORT']}/{quote(entry['NAME'])}"


def _execute(alias: str, statement: str) -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def _tables(alias: str) -> list[str]:
    return connections[alias].introspection.table_names()


# The filesystem broker


@contextlib.contextmanager
def _messages(options: dict[str, Any]) -> Iterator[Any]:
    """A queue of the service's broker; only in a process of its own, because this one has another Celery app."""
    from django_snapshots.filesystem_broker import Transport

    with Connection("filesystem://localhost", transport=Transport, transport_options=options) as connection:
        yield connection.SimpleQueue("race")


def _write_messages(options: dict[str, Any], count: int) -> None:
    with _messages(options) as queue:
        for number in range(count):
            queue.put({"number": number})


def _read_messages(options: dict[str, Any], count: int, answers: Any) -> None:
    with _messages(options) as queue:
        numbers = []
        for _ in range(count):
            message = queue.get(timeout=30)
            numbers.append(message.payload["number"])
            message.ack()
    answers.put(numbers)


def test_a_message_is_never_read_before_it_is_written(service: Service) -> None:
    """kombu's own transport loses about two in a hundred of these to a reader that looks too early."""
    count = 1000
    options = {**service.setting("settings.CELERY_BROKER_TRANSPORT_OPTIONS"), "polling_interval": 0.001}
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_read_messages, args=(options, count, answers), daemon=True),
        context.Process(target=_write_messages, args=(options, count), daemon=True),
    ]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60)) == list(range(count))
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert list(Path(options["data_folder_in"]).iterdir()) == []


# The admin


def test_the_admin_asks_for_a_password_and_shows_the_journal(service: Service) -> None:
    service.must("migrate", "-v0")
    code = """
import json
from django.contrib.auth import get_user_model
from django.test import Client
client, pages = Client(headers={"host": "localhost"}), {}
pages["root"] = client.get("/", follow=True).redirect_chain[-1]
pages["login"] = client.get("/admin/login/").status_code
get_user_model().objects.create_superuser("anna", password="a long password")
client.post("/admin/login/", {"username": "anna", "password": "a long password"})
pages["runs"] = client.get("/admin/django_snapshots/run/").status_code
pages["schedules"] = client.get("/admin/django_celery_beat/periodictask/").status_code
pages["elsewhere"] = Client(headers={"host": "evil.example"}).get("/admin/login/").status_code
print(json.dumps(pages))
"""
    pages = json.loads(service.must("shell", "-v0", "-c", code))
    assert pages == {
        "root": ["/admin/login/?next=/admin/", 302],
        "login": 200,
        "runs": 200,
        "schedules": 200,
        "elsewhere": 400,
    }
