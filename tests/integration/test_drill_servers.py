"""Drills on PostgreSQL and MariaDB: they prove what SQLite's do, and leave no database, schema or session behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_snapshots.catalog import Catalog
from django_snapshots.storage.local import LocalFileSystemBackend
from tests.databases import Maker, mariadb_cursor, postgres_cursor
from tests.integration.conftest import entry
from tests.projects import Project, WorkerProcess, wait_until
from tests.services import Server

CHECKS = "tests.integration.drill_checks"


@pytest.fixture
def project(make_postgres: Maker, make_mariadb: Maker, tmp_path: Path, postgres: Server, mariadb: Server) -> Project:
    """A migrated project on both, each with one group, and one snapshot of them, ``before``."""
    made = {"default": make_postgres(), "legacy": make_mariadb()}
    databases = {alias: entry(name) for alias, name in made.items()}
    made_project = Project(directory=tmp_path / "project", databases=databases, snapshots={"LEASE": 2})
    made_project.extra_environment["PATH"] = f"{postgres.bin_directory}:{made_project.environment()['PATH']}"
    made_project.migrate()
    groups(made_project)
    made_project.must("snapshots", "backup", "before", "--artifact", "database")
    return made_project


def groups(project: Project, *, there: bool = True) -> None:
    """One group in each database, or none."""
    project.call(
        "from django.contrib.auth.models import Group\n"
        "from django.db import connections\n"
        "for alias in connections:\n"
        "    Group.objects.using(alias).all().delete()\n"
        + ("    Group.objects.using(alias).create(name=f'order in {alias}')\n" if there else "")
    )


def on_the_servers(postgres: Server, mariadb: Server) -> set[str]:
    """Every database and schema."""
    with postgres_cursor(postgres) as cursor:
        found = {name for (name,) in cursor.execute("SELECT datname FROM pg_database").fetchall()}
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("SELECT schema_name FROM information_schema.schemata")
        return found | {name for (name,) in cursor.fetchall()}


def told(project: Project, *arguments: str) -> Any:
    return json.loads(project.must("snapshots", *arguments, "--format", "json"))


def take_rows_by_hand(project: Project) -> None:
    """Put dumps without the groups in the place of those of ``before``, with digests made to fit."""
    groups(project, there=False)
    project.must("snapshots", "backup", "without", "--artifact", "database", "--allow-empty")
    catalog = Catalog(LocalFileSystemBackend(project.storage))
    before, without = catalog.get("before"), catalog.get("without")
    records = []
    for record, other in zip(before.artifacts, without.artifacts, strict=True):
        (project.storage / "before" / record.filename).write_bytes(
            (project.storage / "without" / other.filename).read_bytes()
        )
        fitting = {key: other.metadata[key] for key in ("content_size", "content_digest")}
        metadata = {**record.metadata, **fitting}
        records.append(replace(record, size=other.size, checksum=other.checksum, metadata=metadata))
    manifest = project.storage / "before" / "manifest.json"
    manifest.write_bytes(replace(before, artifacts=tuple(records)).to_bytes())
    project.must("snapshots", "delete", "without", "--no-input")


def test_a_good_snapshot_passes_and_nothing_is_left(project: Project, postgres: Server, mariadb: Server) -> None:
    before = on_the_servers(postgres, mariadb)
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.has_its_group"]
    groups(project, there=False)  # what is checked is the snapshot
    report = told(project, "drill")
    assert [(item["subject"], item["checks"]) for item in report["databases"]] == [("default", 1), ("legacy", 1)]
    assert all(item["rows_compared"] and item["rows"] > 0 for item in report["databases"])
    assert on_the_servers(postgres, mariadb) == before


def test_rows_that_were_taken_by_hand_are_missed(project: Project, postgres: Server, mariadb: Server) -> None:
    before = on_the_servers(postgres, mariadb)
    take_rows_by_hand(project)
    project.must("snapshots", "verify", "before")
    done = project.manage("snapshots", "drill", "before")
    assert done.returncode == 4
    assert "default: " in done.stderr and "legacy: " in done.stderr and done.stderr.count("auth_group") >= 2
    assert on_the_servers(postgres, mariadb) == before


def test_another_server_s_alias_needs_no_database_of_its_own(
    project: Project, postgres: Server, mariadb: Server
) -> None:
    before = on_the_servers(postgres, mariadb)
    for alias in ("default", "legacy"):
        project.databases[f"{alias}_scratch"] = {**project.databases[alias], "NAME": "is_not_there"}
    project.snapshots["DRILL_DATABASES"] = {alias: f"{alias}_scratch" for alias in ("default", "legacy")}
    report = told(project, "drill", "before")
    assert [item["into"] for item in report["databases"]] == ["default_scratch", "legacy_scratch"]
    assert on_the_servers(postgres, mariadb) == before


@pytest.mark.parametrize("alias", ["default", "legacy"])
def test_a_drill_that_is_killed_leaves_nothing_once_it_is_swept(
    project: Project, postgres: Server, mariadb: Server, alias: str
) -> None:
    project.must("snapshots", "backup", "one", "--artifact", "database", "--database", alias)
    before = on_the_servers(postgres, mariadb)
    begun = project.directory / "begun"
    project.extra_environment["DRILL_BEGUN"] = str(begun)
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.waits"]
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "snapshots", "drill", "one"],
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(begun.exists, "the drill to look at its scratch database")
        assert len(on_the_servers(postgres, mariadb) - before) >= 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def swept() -> bool:
        project.must("snapshots", "sweep", "--collect")
        return on_the_servers(postgres, mariadb) == before

    wait_until(swept, "the sweep to remove the scratch database")
    assert project.runs()[-1]["state"] == "failed"


def test_a_worker_that_is_killed_in_a_drill_is_followed_by_another_which_removes_what_it_left(
    project: Project, postgres: Server, mariadb: Server, broker_url: str
) -> None:
    before = on_the_servers(postgres, mariadb)
    begun = project.directory / "begun"
    project.broker = project.results = broker_url
    project.extra_environment["DRILL_BEGUN"] = str(begun)
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.waits_once"]
    first = WorkerProcess(project)
    try:
        first.ready()
        project.call("from django_snapshots.tasks import drill\nanswer = drill.delay('before').id")
        wait_until(begun.exists, "the drill to look at its scratch database")
        left = on_the_servers(postgres, mariadb) - before
        assert left
    finally:
        first.teardown()
    second = WorkerProcess(project)
    try:
        second.ready()

        def ended() -> bool:
            project.must("snapshots", "sweep")
            return bool(project.runs()[-1]["state"] not in ("queued", "running"))

        wait_until(ended, "another worker to make the drill")
    finally:
        second.teardown()
    assert (project.runs()[-1]["state"], project.steps()[-1]["attempts"]) == ("succeeded", 2)
    assert on_the_servers(postgres, mariadb) == before
    assert told(project, "info", "before")["proof"]["drill"]["ok"]
