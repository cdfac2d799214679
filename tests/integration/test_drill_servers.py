"""Drills on PostgreSQL and MariaDB: they prove what SQLite's do, and leave no database, schema or session behind."""

from __future__ import annotations

import json
import signal
import socket
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


DEATHS = {
    "default": (
        "django_snapshots.connectors.postgres.properties:create:after",
        "django_snapshots.connectors.postgres.beside:comment:after",
        "django_snapshots.connectors.postgres.filling:Filling._spool:after",
        "django_snapshots.connectors.postgres.filling:Filling.fill:after",
        "django_snapshots.connectors.postgres.new_database:NewDatabase.check:after",
        "django_snapshots.drill.looks:check_migrations:before",
        "django_snapshots.connectors.postgres.new_database:NewDatabase.discard:before",
        "django_snapshots.connectors.postgres.new_database:NewDatabase.discard:after",
    ),
    "legacy": (
        "django_snapshots.connectors.mysql.restore:create_record:before",
        "django_snapshots.connectors.mysql.restore:create_record:after",
        "django_snapshots.connectors.mysql.load:Loader.run:before",
        "django_snapshots.connectors.mysql.load:Loader.run:after",
        "django_snapshots.connectors.mysql.restore:MySQLRestore.check:after",
        "django_snapshots.drill.looks:check_migrations:before",
        "django_snapshots.connectors.mysql.restore:MySQLRestore.discard:before",
        "django_snapshots.connectors.mysql.restore:MySQLRestore.discard:after",
    ),
}


@pytest.mark.parametrize("alias", DEATHS)
def test_a_drill_that_dies_anywhere_leaves_nothing_once_it_is_swept(
    project: Project, postgres: Server, mariadb: Server, alias: str
) -> None:
    project.must("snapshots", "backup", "one", "--artifact", "database", "--database", alias)
    before = on_the_servers(postgres, mariadb)
    project.extra_environment["DJANGO_SETTINGS_MODULE"] = "tests.integration.dying_settings"
    project.snapshots |= {"LEASE": 2, "SWEEP_GRACE": 0, "TEMPORARY_DIRECTORY": str(project.directory / "temporary")}
    (project.directory / "temporary").mkdir()
    left: dict[str, int] = {}

    def swept() -> bool:
        project.must("snapshots", "sweep", "--collect")
        return project.runs()[-1]["state"] == "failed" and on_the_servers(postgres, mariadb) == before

    for where in DEATHS[alias]:
        project.extra_environment["DIES_AT"] = where
        assert project.manage("snapshots", "drill", "one").returncode == -signal.SIGKILL, where
        del project.extra_environment["DIES_AT"]
        left[where] = len(on_the_servers(postgres, mariadb) - before)
        wait_until(swept, f"the sweep to remove what a death at {where} has left")
        assert list((project.directory / "temporary").iterdir()) == [], where
    assert sum(left.values()) >= len(left) - 2, left


def test_a_drill_without_a_journal_that_is_killed_is_swept_without_one(
    project: Project, postgres: Server, mariadb: Server
) -> None:
    """On a machine of its own, through aliases that are no snapshot's."""
    before = on_the_servers(postgres, mariadb)
    for alias in ("default", "legacy"):
        project.databases[f"{alias}_scratch"] = {**project.databases[alias], "NAME": f"{alias}_is_not_there"}
    project.databases["default"]["NAME"] = "is_not_there_either"
    project.snapshots |= {
        "DATABASES": ["default", "legacy"],
        "DRILL_DATABASES": {alias: f"{alias}_scratch" for alias in ("default", "legacy")},
    }
    project.extra_environment |= {
        "DJANGO_SETTINGS_MODULE": "tests.integration.dying_settings",
        "DIES_AT": "django_snapshots.drill.looks:check_migrations:before",
    }
    assert project.manage("snapshots", "drill", "before").returncode == -signal.SIGKILL
    project.extra_environment["DIES_AT"] = "django_snapshots.connectors.mysql.load:Loader.run:after"
    assert project.manage("snapshots", "drill", "before").returncode == -signal.SIGKILL
    del project.extra_environment["DIES_AT"]
    assert len(on_the_servers(postgres, mariadb) - before) == 2

    def swept() -> bool:
        project.must("snapshots", "sweep")
        return on_the_servers(postgres, mariadb) == before

    wait_until(swept, "the sweep to remove what the drill has left")


def test_a_restore_without_a_journal_that_is_killed_is_swept_without_one(
    project: Project, postgres: Server, mariadb: Server
) -> None:
    before = on_the_servers(postgres, mariadb)
    name = project.databases["default"]["NAME"]
    with postgres_cursor(postgres, name) as cursor:
        cursor.execute("DROP TABLE django_snapshots_lock, django_snapshots_step, django_snapshots_run CASCADE")
    project.extra_environment |= {
        "DJANGO_SETTINGS_MODULE": "tests.integration.dying_settings",
        "DIES_AT": "django_snapshots.connectors.postgres.new_database:NewDatabase.check:after",
    }
    options = ("--database", "default", "--no-input", "--confirm", name)
    assert project.manage("snapshots", "restore", "before", *options).returncode == -signal.SIGKILL
    del project.extra_environment["DIES_AT"]
    assert len(on_the_servers(postgres, mariadb) - before) == 1

    def swept() -> bool:
        project.must("snapshots", "sweep")
        return on_the_servers(postgres, mariadb) == before

    wait_until(swept, "the sweep to remove what the restore has left")


def test_a_server_that_is_away_says_nothing_of_the_snapshot(
    project: Project, postgres: Server, mariadb: Server
) -> None:
    """At the beginning, or in the middle of the looks: the drill has failed, and what was proved stands."""
    before = on_the_servers(postgres, mariadb)
    for name in ("one", "two"):
        project.must("snapshots", "backup", name, "--artifact", "database")
    project.must("snapshots", "drill", "two")
    proved = told(project, "info", "two")["proof"]["drill"]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for alias in ("default", "legacy"):
            away = {**project.databases[alias], "HOST": "127.0.0.1", "PORT": nobody.getsockname()[1]}
            project.databases["away"] = away
            project.snapshots["DRILL_DATABASES"] = {alias: "away"}
            done = project.manage("snapshots", "drill", "two")
            assert done.returncode in (1, 5), done.stderr
            assert "do not rely on it" not in done.stderr
    del project.databases["away"]
    del project.snapshots["DRILL_DATABASES"]
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.loses_its_session"]
    for alias in ("default", "legacy"):
        project.must("snapshots", "backup", f"only-{alias}", "--artifact", "database", "--database", alias)
        done = project.manage("snapshots", "drill", f"only-{alias}")
        assert done.returncode == 1, done.stdout + done.stderr
        assert told(project, "info", f"only-{alias}")["proof"]["drill"] is None
        project.must("snapshots", "delete", f"only-{alias}", "--no-input")
    assert told(project, "info", "two")["proof"]["drill"] == proved
    assert [run["state"] for run in project.runs() if run["kind"] == "drill"] == ["succeeded", *["failed"] * 4]
    plan = told(project, "prune", "--keep-last", "1", "--dry-run")
    assert {item["name"] for item in plan["deleted"]} == {"before", "one"}
    assert on_the_servers(postgres, mariadb) == before


def test_nothing_of_one_scratch_database_is_remembered_in_the_next(
    project: Project, postgres: Server, mariadb: Server
) -> None:
    """Two drills in one process: the types of an extension have other numbers in the second."""
    with postgres_cursor(postgres, project.databases["default"]["NAME"]) as cursor:
        cursor.execute("CREATE EXTENSION hstore")
    project.must("snapshots", "backup", "types", "--artifact", "database", "--database", "default")
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.knows_its_types"]
    both = project.call("answer = [django_snapshots.drill_snapshot('types')['level'] for _ in range(2)]")
    assert both == [4, 4]


def test_two_drills_at_once_are_in_nobody_s_way(project: Project, postgres: Server, mariadb: Server) -> None:
    before = on_the_servers(postgres, mariadb)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "django", "snapshots", "drill", "before"],
            env=project.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert on_the_servers(postgres, mariadb) == before


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
