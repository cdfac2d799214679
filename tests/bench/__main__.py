"""``make bench``: snapshots and restores through a worker, beside what a shell and django-dbbackup do.

Each round runs the contestants in turn; memory is sampled in a round of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.contest import Contestants, compare
from tests.bench.databases import GIGABYTE, fill_mariadb, fill_postgres, fill_sqlite
from tests.bench.memory import PeakMemory
from tests.databases import mariadb_cursor, postgres_cursor
from tests.projects import Project, worker_node
from tests.services import Server, running

DATABASE = "bench"
RESTORED = "bench_pipe"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PARTS = ("postgres", "restore", "memory", "mariadb", "sqlite", "tiny")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="each database's size (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to run (default: 3)")
    parser.add_argument("--only", choices=PARTS, action="append", help="what to measure (default: all)")
    options = parser.parse_args()
    servers = running()
    with tempfile.TemporaryDirectory(prefix="django-snapshots-bench-") as name:
        try:
            run(
                Bench(directory=Path(name), servers=servers, rounds=options.rounds, gigabytes=options.gigabytes),
                tuple(options.only or PARTS),
            )
        finally:
            drop_all(servers)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements have in common."""

    directory: Path
    servers: dict[str, Server]
    rounds: int
    gigabytes: float

    @property
    def postgres(self) -> Server:
        """The server of the alias ``default``."""
        return self.servers["postgres"]

    @property
    def mariadb(self) -> Server:
        """The server of the alias ``mariadb``."""
        return self.servers["mariadb"]

    @property
    def sqlite(self) -> Path:
        """The file of the alias ``sqlite``."""
        return self.directory / "bench.sqlite3"

    def environment(self) -> dict[str, str]:
        """That of the shell's contestants: the servers' own clients first, for all alike, and no password in argv."""
        return {
            **os.environ,
            "PATH": self.path,
            "PGPASSWORD": self.postgres.password,
            "MYSQL_PWD": self.mariadb.password,
        }

    @property
    def path(self) -> str:
        """The search path of all contestants."""
        return f"{self.postgres.bin_directory}:{self.mariadb.bin_directory}:{os.environ['PATH']}"

    def shell(self, command: str) -> float:
        """Seconds of a command line."""
        begin = time.monotonic()
        subprocess.run(command, shell=True, check=True, env=self.environment())
        return time.monotonic() - begin


def run(bench: Bench, wanted: tuple[str, ...]) -> None:
    """Everything that is wanted."""
    print(f"{os.cpu_count()} cores; {bench.rounds} rounds.", flush=True)
    drop_all(bench.servers)
    project = prepare(bench, wanted)
    worker = worker_node(project)
    try:
        worker.container.ready()
        take(project, "warm-up", artifacts=["environment"])
        for part, contestants in CONTESTS.items():
            if part in wanted:
                print(f"{part}:", flush=True)
                compare(contestants(bench, project), bench.rounds)
        if "memory" in wanted:
            memory(project, worker.container.pid)
    finally:
        worker.teardown()


def prepare(bench: Bench, wanted: tuple[str, ...]) -> Project:
    """The project, with the databases that are wanted; the journal lies in ``default``, as in most projects."""
    size = int(bench.gigabytes * GIGABYTE)
    databases = {"default": entry(bench.postgres, "postgresql")}
    with postgres_cursor(bench.postgres) as cursor:
        cursor.execute(f"CREATE DATABASE {DATABASE}")
    if {"postgres", "restore", "memory"} & set(wanted):
        with postgres_cursor(bench.postgres, DATABASE) as cursor:
            print(f"PostgreSQL database of {fill_postgres(cursor, size) / GIGABYTE:.2f} GB", flush=True)
    if "mariadb" in wanted:
        databases["mariadb"] = entry(bench.mariadb, "mysql")
        with mariadb_cursor(bench.mariadb) as cursor:
            cursor.execute(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4")
        with mariadb_cursor(bench.mariadb, DATABASE) as cursor:
            print(f"MariaDB database of {fill_mariadb(cursor, size) / GIGABYTE:.2f} GB", flush=True)
    if {"sqlite", "tiny"} & set(wanted):
        tiny = bench.directory / "tiny.sqlite3"
        databases["tiny"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tiny)}
    if "sqlite" in wanted:
        databases["sqlite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(bench.sqlite)}
        print(f"SQLite database of {fill_sqlite(bench.sqlite, size) / GIGABYTE:.2f} GB", flush=True)
    redis = bench.servers["redis"].url
    project = Project(
        directory=bench.directory / "project",
        databases=databases,
        broker=f"{redis}/6",
        results=f"{redis}/6",
        extra_environment={"PATH": bench.path},
    )
    project.migrate()
    return project


def entry(server: Server, engine: str) -> dict[str, Any]:
    """The alias's entry in ``DATABASES``."""
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": DATABASE,
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": server.host,
        "PORT": server.port,
    }


def drop_all(servers: dict[str, Server]) -> None:
    """Remove every database of a bench from the servers."""
    drop_kept(servers["postgres"])
    with postgres_cursor(servers["postgres"]) as cursor:
        for name in (DATABASE, RESTORED):
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    with mariadb_cursor(servers["mariadb"]) as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE}")


def drop_kept(server: Server) -> None:
    """Remove what restores have kept, so that a round doesn't fill the disk of the next."""
    with postgres_cursor(server) as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE 'django\\_snapshots\\_%'")
        for (name,) in cursor.fetchall():
            cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def postgres(bench: Bench, project: Project) -> Contestants:
    """A snapshot of PostgreSQL."""
    server, target = bench.postgres, bench.directory / "pipe.zst"
    python = dbbackup_environment()
    dump = f"pg_dump -Fc -Z0 -h {server.host} -p {server.port} -U {server.user} {DATABASE}"
    return {
        "snapshot.delay().get()": lambda: ours(project, "default"),
        "pg_dump -Fc -Z0 | zstd -3": lambda: bench.shell(f"{dump} | zstd -3 -q -f -o {target}"),
        "django-dbbackup -z": lambda: dbbackup(bench, python),
    }


def mariadb(bench: Bench, project: Project) -> Contestants:
    """A snapshot of MariaDB."""
    server, target = bench.mariadb, bench.directory / "pipe.zst"
    dump = f"mariadb-dump --single-transaction --quick -h {server.host} -P {server.port} -u {server.user} {DATABASE}"
    return {
        "snapshot.delay().get()": lambda: ours(project, "mariadb"),
        "mariadb-dump | zstd -3": lambda: bench.shell(f"{dump} | zstd -3 -q -f -o {target}"),
    }


def sqlite(bench: Bench, project: Project) -> Contestants:
    """A snapshot of SQLite; its own tool can't write into a pipe."""
    copy = bench.directory / "copy.sqlite3"
    return {
        "snapshot.delay().get()": lambda: ours(project, "sqlite"),
        "sqlite3 .backup, then zstd -3": lambda: bench.shell(
            f'sqlite3 {bench.sqlite} ".backup {copy}" && zstd -3 -q -f --rm -o {copy}.zst {copy}'
        ),
    }


def tiny(_bench: Bench, project: Project) -> Contestants:
    """A snapshot of next to nothing: what the way through a broker, a worker and the journal costs."""
    return {"snapshot.delay().get() of an empty database": lambda: ours(project, "tiny")}


def restore(bench: Bench, project: Project) -> Contestants:
    """A restore of PostgreSQL: ours over a full database, which it keeps, in a project whose journal is in it."""
    server = bench.postgres
    take(project, "wanted", artifacts=["database"], databases=["default"])
    (dump,) = (project.storage / "wanted").glob("default*.zst")
    load = f"pg_restore --single-transaction -h {server.host} -p {server.port} -U {server.user} -d {RESTORED}"

    def pipe() -> float:
        with postgres_cursor(server) as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {RESTORED} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0")
        return bench.shell(f"zstd -dc {dump} | {load}")

    def mine() -> float:
        drop_kept(server)
        return delayed(project, f"restore.delay('wanted', databases=['default'], confirm=[{DATABASE!r}])")

    return {"restore.delay().get()": mine, "zstd -dc | pg_restore --single-transaction": pipe}


CONTESTS: dict[str, Callable[[Bench, Project], Contestants]] = {
    "postgres": postgres,
    "mariadb": mariadb,
    "sqlite": sqlite,
    "tiny": tiny,
    "restore": restore,
}


def ours(project: Project, alias: str) -> float:
    """Seconds from ``delay()`` to the result, in a client that is already up."""
    seconds = take(project, "measured", artifacts=["database"], databases=[alias])
    shutil.rmtree(project.storage / "measured")
    return seconds


def take(project: Project, name: str, **arguments: Any) -> float:
    """Take a snapshot through the worker; return the seconds from ``delay()`` to the result."""
    return delayed(project, f"snapshot.delay({name!r}, **{arguments!r})")


def delayed(project: Project, call: str) -> float:
    """Seconds from *call*, which sends a task, to that task's result, in a client that is already up."""
    answer: dict[str, Any] = project.call(
        "import time\nbegin = time.monotonic()\n"
        f"{call}.get(timeout=900)\n"
        "answer = {'seconds': time.monotonic() - begin}"
    )
    assert "error" not in answer, answer
    return float(answer["seconds"])


def dbbackup(bench: Bench, python: Path) -> float:
    """Seconds of ``manage.py dbbackup -z``, less those of an empty management command."""
    target = bench.directory / "dbbackup"
    target.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PATH": bench.path,
        "DJANGO_SETTINGS_MODULE": "tests.bench.dbbackup_settings",
        "BENCH_DATABASES": json.dumps({"default": entry(bench.postgres, "postgresql")}),
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
    """The peaks of the worker and all it starts, while it takes one snapshot and while it restores it."""
    calls = {
        "a snapshot": "snapshot.delay('memory', artifacts=['database'], databases=['default'])",
        "its restore": f"restore.delay('memory', databases=['default'], confirm=[{DATABASE!r}])",
    }
    for what, call in calls.items():
        with PeakMemory(worker) as peak:
            delayed(project, call)
        print(f"peak memory (PSS) of the worker and all it starts during {what}: {peak.peak / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
