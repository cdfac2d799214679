"""``make bench``: a PostgreSQL snapshot through a worker, beside the shell pipe and django-dbbackup.

Each round runs the contestants in turn, so that a machine whose speed drifts is fair to all; the ratios are taken
round by round, and their median is what counts. Memory is sampled in a round of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.databases import GIGABYTE, fill
from tests.bench.memory import PeakMemory
from tests.databases import postgres_cursor
from tests.projects import Project, worker_node
from tests.services import Server, running

DATABASE = "bench"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="the database's size (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to run (default: 3)")
    parser.add_argument("--only", choices=("all", "memory", "pipe"), default="all", help="what to measure")
    options = parser.parse_args()
    servers = running()
    server = servers["postgres"]
    with tempfile.TemporaryDirectory(prefix="django-snapshots-bench-") as name:
        try:
            run(Path(name), server, servers["redis"].url, options)
        finally:
            with postgres_cursor(server) as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")


def run(directory: Path, server: Server, redis: str, options: argparse.Namespace) -> None:
    """Everything, in *directory*."""
    size = prepare(server, int(options.gigabytes * GIGABYTE))
    print(f"PostgreSQL database of {size / GIGABYTE:.2f} GB; {os.cpu_count()} cores; {options.rounds} rounds.")
    project = make_project(directory, server, redis)
    worker = worker_node(project)
    try:
        worker.container.ready()
        take(project, "warm-up", artifacts=["environment"])
        if options.only in ("all", "pipe"):
            compare(directory, server, project, options)
        memory(project, worker.container.pid)
    finally:
        worker.teardown()


def prepare(server: Server, size: int) -> int:
    """Make the database; return its size in bytes."""
    with postgres_cursor(server) as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {DATABASE}")
    with postgres_cursor(server, DATABASE) as cursor:
        return fill(cursor, size)


def make_project(directory: Path, server: Server, redis: str) -> Project:
    """A project whose only alias is the database; the journal lies in it, as in most projects."""
    project = Project(
        directory=directory / "project",
        databases={"default": entry(server)},
        broker=f"{redis}/6",
        results=f"{redis}/6",
        extra_environment={"PATH": path(server)},
    )
    project.migrate()
    return project


def entry(server: Server) -> dict[str, Any]:
    """The alias's entry in ``DATABASES``."""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": DATABASE,
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": server.host,
        "PORT": server.port,
    }


def path(server: Server) -> str:
    """The search path with the server's own clients first, for all contestants."""
    return f"{server.bin_directory}:{os.environ['PATH']}"


def compare(directory: Path, server: Server, project: Project, options: argparse.Namespace) -> None:
    """The rounds, and the ratios."""
    contestants: dict[str, Callable[[], float]] = {
        "snapshot.delay().get()": lambda: ours(project),
        "pg_dump -Fc -Z0 | zstd -3": lambda: pipe(directory, server),
    }
    if options.only == "all":
        python = dbbackup_environment()
        contestants["django-dbbackup -z"] = lambda: dbbackup(directory, server, python)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant())
            print(f"  round {number + 1}: {name}: {times[name][-1]:.2f} s", flush=True)
    mine, *others = times
    for name in times:
        print(f"{name}: median {statistics.median(times[name]):.2f} s")
    for name in others:
        ratios = [a / b for a, b in zip(times[mine], times[name], strict=True)]
        print(f"{mine} / {name}: median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def ours(project: Project) -> float:
    """Seconds from ``delay()`` to the result, in a client that is already up."""
    answer = take(project, "measured", artifacts=["database"])
    shutil.rmtree(project.storage / "measured")
    return float(answer["seconds"])


def take(project: Project, name: str, *, artifacts: list[str]) -> dict[str, Any]:
    """Take a snapshot through the worker; the result, with the seconds it took."""
    answer: dict[str, Any] = project.call(
        "import time\nbegin = time.monotonic()\n"
        f"answer = snapshot.delay({name!r}, artifacts={artifacts!r}).get(timeout=900)\n"
        "answer['seconds'] = time.monotonic() - begin"
    )
    assert "error" not in answer, answer
    return answer


def pipe(directory: Path, server: Server) -> float:
    """Seconds of the shell pipe."""
    target = directory / "pipe.zst"
    begin = time.monotonic()
    subprocess.run(
        f"pg_dump -Fc -Z0 -h {server.host} -p {server.port} -U {server.user} {DATABASE} | zstd -3 -q -f -o {target}",
        shell=True,
        check=True,
        env={**os.environ, "PATH": path(server), "PGPASSWORD": server.password},
    )
    seconds = time.monotonic() - begin
    target.unlink()
    return seconds


def dbbackup(directory: Path, server: Server, python: Path) -> float:
    """Seconds of ``manage.py dbbackup -z``, less those of an empty management command."""
    target = directory / "dbbackup"
    target.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PATH": path(server),
        "DJANGO_SETTINGS_MODULE": "tests.bench.dbbackup_settings",
        "BENCH_DATABASES": json.dumps({"default": entry(server)}),
        "BENCH_DIRECTORY": str(target),
    }
    begin = time.monotonic()
    subprocess.run([python, "-m", "django", "dbbackup", "-z", "--noinput", "-v0"], check=True, env=environment)
    middle = time.monotonic()
    subprocess.run([python, "-m", "django", "check", "-v0"], check=True, env=environment, capture_output=True)
    empty = time.monotonic() - middle
    shutil.rmtree(target)
    return middle - begin - empty


def dbbackup_environment() -> Path:
    """The Python of an environment that has django-dbbackup and nothing of ours."""
    home = Path(".venv-dbbackup").absolute()
    python = home / "bin" / "python"
    if not (home / "stamp").exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", CONSTRAINTS], check=True)
        (home / "stamp").touch()
    return python


def memory(project: Project, worker: int) -> None:
    """The peak of the worker and all it starts, while it takes one snapshot."""
    with PeakMemory(worker) as peak:
        take(project, "memory", artifacts=["database"])
    shutil.rmtree(project.storage / "memory")
    print(f"peak memory (PSS) of the worker and all it starts: {peak.peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
