"""Two runs that want the same thing: one is refused, or waits, and says for whom; through real workers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pytest_celery import CeleryWorkerCluster

from tests.integration.sqlite_projects import query, sqlite_project
from tests.integration.test_commands import at_work, fails, ok, told
from tests.integration.test_results import CONNECTOR
from tests.integration.test_run_commands import started
from tests.projects import Project, wait_until

SLOW = """#!/bin/sh
case "$*" in *--version*|-V) exec {real} "$@";; esac
touch {place}/dumping.$$
while [ ! -e {place}/go ]; do sleep 0.05; done
exec {real} "$@"
"""


@pytest.fixture
def throttled(three_engines: Project, tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    """The dump tool of PostgreSQL doesn't begin before there is a file ``go``."""
    import shutil

    project = three_engines
    # A worker whose slot is taken must not hold back the messages of the other.
    project.celery["WORKER_DISABLE_PREFETCH"] = True
    real = shutil.which("pg_dump", path=project.environment()["PATH"])
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pg_dump").write_text(SLOW.format(real=real, place=tmp_path))
    (tools / "pg_dump").chmod(0o755)
    project.extra_environment["PATH"] = f"{tools}:{project.environment()['PATH']}"
    return project


def test_a_database_that_is_dumped_is_not_dumped_again(
    throttled: Project, two_workers: CeleryWorkerCluster, tmp_path: Path
) -> None:
    project = throttled
    parts = "databases=['default'], artifacts=['database']"
    first = project.call(f"answer = snapshot.delay('first', {parts}).id")
    wait_until(lambda: list(tmp_path.glob("dumping.*")), "the dump tool")
    refused = project.call(f"answer = snapshot.delay('second', {parts}).get(timeout=60)")
    assert refused["type"] == "SnapshotBusyError"
    assert re.search(
        f"Database default is in use by snapshot run {first} of 'first', .* {chr(92)}d+ s ago", refused["error"]
    )
    # Another database is free.
    assert project.call("answer = snapshot.delay('third', databases=['local'], artifacts=['database']).get(timeout=60)")
    third = project.call(f"answer = snapshot.delay('patient', {parts}, wait=300).id")
    why = wait_until(lambda: waits(project, third), "the run to wait")
    assert why.startswith(f"Database default is in use by the snapshot run {first} of 'first'")
    (tmp_path / "go").touch()
    got = project.call(
        "from django_snapshots.tasks import snapshot\n"
        f"answer = [snapshot.AsyncResult(id).get(timeout=90)['name'] for id in ({first!r}, {third!r})]"
    )
    assert got == ["first", "patient"]
    assert project.call("from django_snapshots.models import Lock\nanswer = Lock.objects.count()") == 0


def waits(project: Project, run: str) -> str:
    text: str = project.call(
        "from django_snapshots.models import Run\n"
        f"answer = Run.objects.filter(pk={run!r}, state='queued').values_list('error', flat=True).first() or ''"
    )
    return text


def test_nothing_is_done_with_a_database_that_is_restored(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path)
    ok(project, "backup", "before", "--artifact", "database")
    key = project.call(
        "from django_snapshots.conf import get_settings\nanswer = get_settings().kind('database').identity('other')"
    )
    run = at_work(project, "restore", "before", key, exclusive=True, what="Database other")
    for command in (["backup"], ["restore", "before", "--no-input", "--confirm", str(tmp_path / "other.sqlite3")]):
        chosen = [*command, "--artifact", "database", "--database", "other"]
        fails(project, 7, *chosen, words=["Database other is in use by restore run", run, "s ago", "--wait"])
    assert told(project, "backup", "--database", "default", "--artifact", "database")["name"]


def test_an_inline_run_waits_and_then_runs(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path, DATABASE_CONNECTORS={"other": CONNECTOR})
    project.extra_environment["MEETING_PLACE"] = str(tmp_path)
    parts = ("--artifact", "database", "--database", "other")
    with started(project, "backup", "first", *parts) as first:
        moving = "SELECT 1 FROM django_snapshots_step WHERE content_bytes > 0"
        wait_until(lambda: query(project, "default", moving), "a byte")
        with started(project, "backup", "second", *parts, "--wait", "200") as second:
            why = "SELECT 1 FROM django_snapshots_run WHERE state = 'queued' AND error LIKE '%waits for its end.'"
            wait_until(lambda: query(project, "default", why), "the second to wait")
            (tmp_path / "go").touch()
            for process in (first, second):
                words = process.communicate(timeout=100)[1]
                assert process.returncode == 0, words
    assert sorted(run["name"] for run in told(project, "status")["ended"]) == ["first", "second"]


def test_two_aliases_of_one_database_are_one_thing_within_a_run(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path)
    project.databases["twin"] = dict(project.databases["other"])
    taken = told(project, "backup", "both", "--artifact", "database")
    assert [item["filename"] for item in taken["artifacts"]] == [
        "default.sqlite3.zst",
        "other.sqlite3.zst",
        "twin.sqlite3.zst",
    ]
