"""A worker that is killed leaves neither a real database tool nor its sessions at the server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from django.db import connections

from tests.databases import Maker, postgres_cursor
from tests.projects import ROOT, wait_until
from tests.services import Server

WORKER = """
import sys
from django.conf import settings
settings.configure()
from django_snapshots.processes import Processes
with Processes() as processes:
    tool = processes.start(sys.argv[1:])
    # Nothing is read, so a dump stands still as soon as the pipe is full.
    tool.wait()
"""
TABLES = ("one", "two", "three")


@pytest.fixture
def alias(make_postgres: Maker) -> str:
    """A database with three tables of 10 MB."""
    name = make_postgres()
    with connections[name].cursor() as cursor:
        for table in TABLES:
            cursor.execute(
                f"CREATE TABLE {table} AS SELECT n, repeat(md5(n::text), 20) AS word FROM generate_series(1, 16000) n"
            )
    return name


def environment(server: Server, label: str) -> dict[str, str]:
    return {
        **os.environ,
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": server.user,
        "PGPASSWORD": server.password,
        "PGAPPNAME": label,
    }


@contextmanager
def worker(server: Server, label: str, *argv: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", WORKER, *map(str, argv)]
    with subprocess.Popen(command, env=environment(server, label), cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def sessions(server: Server, label: str) -> int:
    with postgres_cursor(server, "postgres") as cursor:
        row = cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [label]).fetchone()
    return int(row[0])


def descendants(process: subprocess.Popen[bytes], name: str, count: int = 1) -> list[psutil.Process]:
    """All that *process* has started, once *count* of it are called *name*."""
    found = psutil.Process(process.pid).children(recursive=True)
    return found if sum(member.name() == name for member in found) == count else []


def kill(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


@pytest.mark.parametrize("script", [None, '"$0" "$@"; exit $?', 'setsid "$0" "$@" & wait'])
def test_a_dump_whose_worker_is_killed(postgres: Server, alias: str, script: str | None) -> None:
    """Also one that a wrapper script runs, and one in a session of its own."""
    label = f"killed-{os.urandom(4).hex()}"
    dump = [f"{postgres.bin_directory}/pg_dump", "--format=custom", "--compress=0"]
    wrapped = ["/bin/sh", "-c", script, *dump] if script else dump
    database = str(connections[alias].settings_dict["NAME"])
    with worker(postgres, label, *wrapped, database) as process:
        wait_until(lambda: sessions(postgres, label), "the dump's session", 20)
        family = wait_until(lambda: descendants(process, "pg_dump"), "pg_dump", 20)
        kill(process, family)
    wait_until(lambda: not sessions(postgres, label), "the end of the dump's session", 20)


def test_a_parallel_restore_whose_worker_is_killed(
    postgres: Server, alias: str, make_postgres: Maker, tmp_path: Path
) -> None:
    """``pg_restore``'s own workers end with it, while each of them waits for a lock, and write nothing afterwards."""
    database = str(connections[alias].settings_dict["NAME"])
    label, archive = f"killed-{os.urandom(4).hex()}", tmp_path / "archive"
    subprocess.run(
        [f"{postgres.bin_directory}/pg_dump", "--format=custom", f"--file={archive}", database],
        env=environment(postgres, "prepares"),
        check=True,
    )
    target = str(connections[make_postgres()].settings_dict["NAME"])
    restore = [f"{postgres.bin_directory}/pg_restore", "--jobs=3", "--data-only", f"--dbname={target}", archive]
    with postgres_cursor(postgres, target) as cursor:
        for table in TABLES:
            cursor.execute(f"CREATE TABLE {table} (n integer, word text)")
        cursor.execute(f"BEGIN; LOCK TABLE {', '.join(TABLES)}")
        with worker(postgres, label, *restore) as process:
            wait_until(lambda: sessions(postgres, label) >= 3, "three sessions", 20)
            family = wait_until(lambda: descendants(process, "pg_restore", 4), "pg_restore and its workers", 20)
            kill(process, family)
        cursor.execute("ROLLBACK")
        wait_until(lambda: not sessions(postgres, label), "the end of the restore's sessions", 20)
        for table in TABLES:
            assert cursor.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
