"""The real programs around a project: a Celery worker, beat, and for ``make serve`` a web server.

They are started in a session of their own and die with this process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from django_celery_beat.models import PeriodicTask

from django_snapshots.processes import Processes, Tool
from tasks.celery import app
from tasks.demo.surroundings import BEAT_LOG, REPOSITORY, WORKER_LOG, DemoError

_READY_WITHIN = 60.0
_STOPPED_WITHIN = 30.0
_LOOK_EVERY = 0.05


@dataclass(frozen=True, kw_only=True)
class Program:
    """One running program."""

    name: str
    tool: Tool

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.tool.pid

    def wait_until(self, ready: Callable[[], object]) -> None:
        """Ask *ready* again and again until it says yes; raise ``DemoError`` if the program ends, or takes too long."""
        deadline = time.monotonic() + _READY_WITHIN
        while not ready():
            if self.ended_within(_LOOK_EVERY):
                raise DemoError(f"The {self.name} did not start: {self.tool.explain()}")
            if time.monotonic() > deadline:
                raise DemoError(f"The {self.name} was not ready after {_READY_WITHIN:.0f} seconds.")

    def ended_within(self, seconds: float) -> bool:
        """Wait for at most so long; whether the program has ended."""
        try:
            self.tool.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Ask it to end and wait for that; what doesn't listen is killed by ``Processes``."""
        if self.tool.running():
            os.kill(self.pid, signal.SIGTERM)
            self.ended_within(_STOPPED_WITHIN)


@contextlib.contextmanager
def stopped_at_the_end() -> Iterator[Processes]:
    """Whatever is started here is no longer there afterwards."""
    with Processes() as processes:
        yield processes


@contextlib.contextmanager
def worker(processes: Processes) -> Iterator[Program]:
    """A Celery worker of two processes that answers a ping."""
    node = f"demo-{secrets.token_hex(3)}@localhost"
    arguments = ["-A", "tasks", "worker", "-n", node, "--concurrency=2", "--loglevel=INFO", f"--logfile={WORKER_LOG}"]
    with _running(processes, "worker", ["celery", *arguments]) as program:
        program.wait_until(lambda: app.control.ping(destination=[node], timeout=0.5))
        yield program


@contextlib.contextmanager
def beat(processes: Processes) -> Iterator[Program]:
    """Celery's beat, with its schedule in the database."""
    arguments = ["-A", "tasks", "beat", "--loglevel=INFO", f"--logfile={BEAT_LOG}"]
    with _running(processes, "beat", ["celery", *arguments]) as program:
        program.wait_until(lambda: "beat: Starting..." in _text(BEAT_LOG) and _has_clean_up())
        yield program


@contextlib.contextmanager
def web_server(processes: Processes, port: int) -> Iterator[Program]:
    """Django's own server on a loopback port; it serves the admin's static files too."""
    command = ["django", "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"]
    with _running(processes, "web server", command) as program:
        program.wait_until(lambda: _answers(f"http://127.0.0.1:{port}/admin/login/"))
        yield program


def free_port(first: int) -> int:
    """*first*, or the next port that nobody has."""
    for port in range(first, first + 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoError(f"No port from {first} to {first + 99} is free.")


@contextlib.contextmanager
def _running(processes: Processes, name: str, module: Sequence[str]) -> Iterator[Program]:
    argv = [sys.executable, "-m", *module]
    program = Program(name=name, tool=processes.start(argv, stdout=subprocess.DEVNULL, cwd=REPOSITORY))
    try:
        yield program
    finally:
        program.stop()


def _has_clean_up() -> bool:
    """Whether beat has put the task that Celery itself schedules into the database, which it does once, at first."""
    return bool(PeriodicTask.objects.filter(name="celery.backend_cleanup").exists())


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
