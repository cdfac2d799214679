"""A PostgreSQL snapshot needs neither memory nor disk in proportion to the database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.bench.databases import fill_postgres
from tests.bench.memory import PeakMemory
from tests.databases import Maker, postgres_cursor
from tests.integration.conftest import entry
from tests.projects import READY, ROOT, Project, wait_until
from tests.services import Server

SIZE = 400_000_000
PEAK = 200_000_000
# A mount namespace in which nothing can be written but the storage, a temporary directory of 1 MB, the pipes that
# were open before, and the system's own memory file systems, which Celery's worker needs for its semaphores.
READ_ONLY = """
mount --bind "$STORAGE" "$STORAGE" && mount -o remount,bind,ro / && mount -o remount,bind,rw "$STORAGE" &&
mount -t tmpfs -o size=1m none "$TMPDIR" && exec "$@"
"""


@pytest.mark.alone
def test_a_worker_with_a_megabyte_of_temporary_directory(
    make_postgres: Maker, tmp_path: Path, broker_url: str, postgres: Server
) -> None:
    project = Project(
        directory=tmp_path / "project",
        databases={"default": entry(make_postgres())},
        broker=broker_url,
        results=broker_url,
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    project.storage.mkdir()
    project.migrate()
    with postgres_cursor(postgres, str(project.databases["default"]["NAME"])) as cursor:
        fill_postgres(cursor, SIZE)
    project.extra_environment |= {
        "PATH": f"{postgres.bin_directory}:{os.environ['PATH']}",
        "TMPDIR": str(temporary),
        "STORAGE": str(project.storage),
    }
    wrapper = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    celery = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "worker", "-c", "1", "-Q", "snapshots"]
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [*wrapper, "sh", "-ec", READ_ONLY, "sh", *celery, "-l", "INFO", "-n", "confined@%h"],
            env=project.environment(),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: READY in log.read_text() or worker.poll() is not None, "the worker")
        assert worker.poll() is None, log.read_text()
        del project.extra_environment["TMPDIR"]
        with PeakMemory(worker.pid) as peak:
            taken = project.call("answer = snapshot.delay('confined', artifacts=['database']).get(timeout=120)")
    finally:
        for process in psutil.Process(worker.pid).children(recursive=True):
            process.kill()
        worker.kill()
        worker.wait()
    assert taken["artifacts"][0]["metadata"]["content_size"] > SIZE / 2
    assert 0 < peak.peak < PEAK, f"{peak.peak / 1e6:.0f} MB"
    assert project.call("answer = django_snapshots.verify_snapshot('confined')")["level"] == 2
