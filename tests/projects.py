"""A project of its own for a test, and its real Celery workers as nodes of pytest-celery, without containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from pytest_celery import CeleryTestWorker

from tests import interpreter

ROOT = Path(__file__).resolve().parent.parent
READY = " ready."
_DEADLINE = 60.0


def wait_until(condition: Any, what: str, deadline: float = _DEADLINE) -> Any:
    """Poll *condition* until it is true and return its value; fail with *what* after *deadline* seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline:.0f} s in vain for {what}"
        time.sleep(0.02)
    return value


_migrated: dict[str, dict[str, bytes]] = {}
"""By a project's settings, what its SQLite files hold once it is migrated."""


def _is_sqlite_file(entry: dict[str, Any]) -> bool:
    return entry["ENGINE"] == "django.db.backends.sqlite3" and Path(str(entry["NAME"])).is_absolute()


def _options(databases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {alias: {key: value for key, value in entry.items() if key != "NAME"} for alias, entry in databases.items()}


@dataclass(kw_only=True)
class Project:
    """A Django project in a directory of its own: what its processes get by environment, and how to run them."""

    directory: Path
    databases: dict[str, dict[str, Any]]
    broker: str = "memory://"
    results: str = ""
    snapshots: dict[str, Any] = field(default_factory=dict)
    extra_environment: dict[str, str] = field(default_factory=dict)
    celery: dict[str, Any] = field(default_factory=dict)
    """Further settings of Celery, as Django's settings call them but without ``CELERY_``."""

    def __post_init__(self) -> None:
        self.media.mkdir(parents=True, exist_ok=True)

    @property
    def media(self) -> Path:
        """``MEDIA_ROOT``."""
        return self.directory / "media"

    @property
    def storage(self) -> Path:
        """Where its snapshots go."""
        return self.directory / "snapshots"

    def environment(self) -> dict[str, str]:
        """The whole environment of its processes."""
        storage = {
            "BACKEND": "django_snapshots.storage.LocalFileSystemBackend",
            "OPTIONS": {"location": str(self.storage)},
        }
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": str(ROOT),
            "SNAPSHOTS_TEST_DIRECTORY": str(self.directory),
            "SNAPSHOTS_TEST_MEDIA": str(self.media),
            "SNAPSHOTS_TEST_DATABASES": json.dumps(self.databases, default=str),
            "SNAPSHOTS_TEST_SNAPSHOTS": json.dumps({"STORAGE": storage, **self.snapshots}),
            "SNAPSHOTS_TEST_BROKER": self.broker,
            "SNAPSHOTS_TEST_RESULTS": self.results,
            "SNAPSHOTS_TEST_CELERY": json.dumps(self.celery),
            **self.extra_environment,
        }

    def run(self, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a Python command line of the project to its end; the caller looks at its exit status."""
        return interpreter.run(argv, self.environment(), directory=ROOT, modules=self.directory, stdin=stdin)

    def manage(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """``manage.py`` with *arguments*."""
        return self.run("-m", "django", *arguments, stdin=stdin)

    def must(self, *arguments: str) -> str:
        """``manage.py`` with *arguments*, which must succeed; returns what it printed."""
        done = self.manage(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def migrate(self) -> None:
        """Make every alias's tables. Of new SQLite files that takes two seconds, so the next ones are copies."""
        files = {alias: Path(str(entry["NAME"])) for alias, entry in self.databases.items()}
        if any(not _is_sqlite_file(entry) or files[alias].exists() for alias, entry in self.databases.items()):
            self._migrate()
            return
        settings = json.dumps(
            [self.extra_environment, self.results, self.snapshots, self.celery, _options(self.databases)],
            sort_keys=True,
            default=str,
        ).replace(str(self.directory), "")
        if settings not in _migrated:
            self._migrate()
            _migrated[settings] = {alias: file.read_bytes() for alias, file in files.items()}
            return
        for alias, content in _migrated[settings].items():
            files[alias].write_bytes(content)

    def _migrate(self) -> None:
        self.call(
            "from django.core.management import call_command\n"
            "from django.db import connections\n"
            "for alias in connections:\n"
            "    call_command('migrate', verbosity=0, database=alias)"
        )

    def call(self, code: str) -> Any:
        """Run *code* in the project, with its Celery app; returns the value that it assigns to ``answer``.

        A ``SnapshotError`` comes back as ``{"error": text, "type": name}``.
        """
        script = (
            "import json, django\nfrom tests.celery_app import app\napp.set_current(); django.setup()\n"
            "from django_snapshots.exceptions import SnapshotError\n"
            "from django_snapshots.tasks import snapshot, restore, verify\n"
            "import django_snapshots\nanswer = None\ntry:\n"
            + "".join(f"    {line}\n" for line in code.strip().splitlines())
            + "except SnapshotError as error:\n    answer = {'error': str(error), 'type': type(error).__name__}\n"
            "print(json.dumps(answer, default=str))\n"
        )
        done = self.run("-c", script)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def steps(self) -> list[dict[str, Any]]:
        """The journal's steps, oldest first."""
        return list(
            self.call(
                "from django_snapshots.models import Step\n"
                "answer = list(Step.objects.order_by('pk').values('run__kind', 'type', 'subject', 'state', 'holder', "
                "'first_byte_at', 'last_byte_at', 'filename', 'error', 'attempts'))"
            )
        )

    def schedules(self, entries: dict[str, Any] | None, **more: Any) -> None:
        """What the processes that start from now on have as ``SNAPSHOTS["SCHEDULES"]``, and *more* keys."""
        self.snapshots = {**self.snapshots, "SCHEDULES": entries, **more}

    def periodic_tasks(self) -> dict[str, dict[str, Any]]:
        """Beat's rows by name, with their times as text."""
        return dict(
            self.call(
                "from django_celery_beat.models import PeriodicTask\n"
                "answer = {row.name: {'task': row.task, 'kwargs': json.loads(row.kwargs), 'enabled': row.enabled, "
                "'crontab': row.crontab and str(row.crontab), 'interval': row.interval and str(row.interval), "
                "'runs': row.total_run_count, 'expire_seconds': row.expire_seconds, 'pk': row.pk} "
                "for row in PeriodicTask.objects.all()}"
            )
        )

    def runs(self) -> list[dict[str, Any]]:
        """The journal's runs, oldest first."""
        return list(
            self.call(
                "from django_snapshots.models import Run\n"
                "answer = list(Run.objects.order_by('created_at').values("
                "'id', 'kind', 'state', 'name', 'error', 'requested_from', 'requested_by', 'result', 'request'))"
            )
        )

    def stored(self) -> list[str]:
        """Every file in the storage but its marker."""
        found = (path.relative_to(self.storage) for path in self.storage.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if path.name != ".django-snapshots.json")


class BeatProcess:
    """A real ``celery beat`` of a project; ends with the ``with`` block."""

    def __init__(self, project: Project, *options: str) -> None:
        self._project = project
        self._options = options
        self._log = project.directory / f"beat-{uuid.uuid4().hex[:12]}.log"

    def __enter__(self) -> BeatProcess:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.celery_app", "beat", "-l", "INFO", "--pidfile="),
                    *("--max-interval", "1", *(self._options or ("-S", "django"))),
                ],
                env=self._project.environment(),
                cwd=self._project.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_DEADLINE)
        finally:
            # One that lives on would send to the queue of the next test.
            self._process.kill()
            self._process.wait(_DEADLINE)

    def logs(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def says(self, text: str) -> None:
        """Wait until it has printed *text*; fail with its log if it ends before."""
        wait_until(lambda: text in self.logs() or self._process.poll() is not None, f"beat to say {text!r}")
        assert text in self.logs(), self.logs()


class WorkerProcess:
    """A ``celery worker`` process in the shape of pytest-celery's containers (``CELERY.md``: duck typing is enough)."""

    def __init__(
        self,
        project: Project,
        *,
        concurrency: int = 1,
        queue: str = "snapshots",
        node: str = "",
        options: tuple[str, ...] = ("--without-mingle", "--without-gossip"),
    ) -> None:
        self.id = uuid.uuid4().hex
        self.name = f"worker-{self.id[:12]}"
        self._project = project
        self._concurrency = concurrency
        self._queue = queue
        self.node = node or f"worker@{self.id[:12]}"
        self._options = options
        self._log = project.directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """The worker's main process."""
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> str:
        """``running`` or ``exited``."""
        return "running" if self._process is not None and self._process.poll() is None else "exited"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """The broker's URL under both names that pytest-celery asks for."""
        return {"url": self._project.broker, "host_url": self._project.broker}

    def worker_name(self) -> str:
        """The name before the ``@``."""
        return "worker"

    def worker_queue(self) -> str:
        """The queue that it consumes."""
        return self._queue

    def start(self) -> None:
        """Start it with an empty log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.celery_app", "worker", "-l", "INFO"),
                    *("-c", str(self._concurrency), "-Q", self._queue, "-P", "prefork"),
                    *("-n", self.node, *self._options),
                ],
                env=self._project.environment(),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def logs(self) -> str:
        """What it printed since its start."""
        return self._log.read_text(errors="replace")

    def ready(self) -> bool:
        """Wait until it takes tasks; fail with its log if it ends before."""
        wait_until(lambda: READY in self.logs() or self.status == "exited", f"{self.name} to get ready")
        assert self.status == "running", self.logs()
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send *signal* and wait for the end."""
        number = signal if isinstance(signal, int) else getattr(globals()["signal"], signal)
        os.kill(self.pid, number)
        assert self._process is not None
        self._process.wait(_DEADLINE)

    def send(self, number: int) -> None:
        """Send a signal, and wait for nothing."""
        os.kill(self.pid, number)

    def reload(self) -> None:
        """Nothing is cached here."""

    def restart(self, timeout: float = _DEADLINE) -> None:
        """End it if it runs, and start it anew."""
        if self.status == "running":
            self.kill("SIGTERM")
        self.start()
        self.ready()

    def teardown(self) -> None:
        """End it and its children at once: a warm shutdown takes seconds, and no test asks for anything after it."""
        if self._process is None or self.status == "exited":
            return
        os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(_DEADLINE)


def worker_node(project: Project, app: Celery | None = None, **options: Any) -> CeleryTestWorker:
    """A worker of *project* as a node for a ``CeleryWorkerCluster``."""
    return CeleryTestWorker(WorkerProcess(project, **options), app)  # type: ignore[arg-type]
