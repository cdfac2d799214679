"""Drills on PostgreSQL and MariaDB: they prove what SQLite's do, and leave no database, schema or session behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytest_django.plugin import DjangoDbBlocker

from django_snapshots.catalog import Catalog
from django_snapshots.storage.local import LocalFileSystemBackend
from tests.databases import Maker, MariaDBMaker, PostgresMaker, mariadb_cursor, postgres_cursor
from tests.faults.rounds.brokers import bring_up
from tests.integration.conftest import entry
from tests.projects import Project, WorkerProcess, wait_until
from tests.services import Server
from tests.services.servers import MariaDB, Postgres, Service

CHECKS = "tests.integration.drill_checks"


@pytest.fixture(scope="module")
def template(
    postgres: Server, mariadb: Server, tmp_path_factory: pytest.TempPathFactory, django_db_blocker: DjangoDbBlocker
) -> Project:
    """A migrated project on both, each with one group, and one snapshot of them, ``before``; its databases are files
    now. It takes seconds to make, and a copy of it takes none."""
    directory = tmp_path_factory.mktemp("template")
    makers = {"default": PostgresMaker(postgres), "legacy": MariaDBMaker(mariadb)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(django_db_blocker.unblock())
        for maker in makers.values():
            stack.callback(maker.undo)
        made = project_on({alias: maker() for alias, maker in makers.items()}, directory, postgres)
        made.migrate()
        groups(made)
        made.must("snapshots", "backup", "before", "--artifact", "database")
        for alias, server in {"default": postgres, "legacy": mariadb}.items():
            client(server, dump=True, name=made.databases[alias]["NAME"], file=directory / alias)
    return made


@pytest.fixture
def project(
    template: Project, make_postgres: Maker, make_mariadb: Maker, tmp_path: Path, postgres: Server, mariadb: Server
) -> Project:
    """One of this test's own, as the template is."""
    made = project_on({"default": make_postgres(), "legacy": make_mariadb()}, tmp_path, postgres)
    for alias, server in {"default": postgres, "legacy": mariadb}.items():
        file = template.directory.parent / alias
        client(server, dump=False, name=made.databases[alias]["NAME"], file=file)
    shutil.copytree(template.storage, made.storage)
    return made


def project_on(aliases: dict[str, str], directory: Path, postgres: Server) -> Project:
    databases = {alias: entry(name) for alias, name in aliases.items()}
    made = Project(directory=directory / "project", databases=databases, snapshots={"LEASE": 2})
    made.extra_environment["PATH"] = f"{postgres.bin_directory}:{made.environment()['PATH']}"
    return made


def client(server: Server, *, dump: bool, name: str, file: Path) -> None:
    """Dump the database *name* into *file*, or load it from there, by the server's own programs."""
    programs = {"postgres": ("psql", "pg_dump"), "mariadb": ("mariadb", "mariadb-dump")}[server.name]
    postgres = server.name == "postgres"
    reached = ["-h", server.host, "-p" if postgres else "-P", str(server.port), "-U" if postgres else "-u", server.user]
    with file.open("wb" if dump else "rb") as stream:
        subprocess.run(
            [f"{server.bin_directory}/{programs[dump]}", *reached, name],
            env={**os.environ, "PGPASSWORD": server.password, "MYSQL_PWD": server.password},
            **({"stdout": stream} if dump else {"stdin": stream, "stdout": subprocess.DEVNULL}),
            check=True,
        )


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


@pytest.fixture(scope="module")
def other_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Another PostgreSQL and another MariaDB, by the alias whose snapshots they are to take; they hold nothing."""
    with contextlib.ExitStack() as stack:
        found = {}
        for alias, sort in {"default": Postgres, "legacy": MariaDB}.items():
            # A path of pytest's own may be too long for a socket, and is closed to the servers' user.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snapshots-", dir="/tmp")))
            directory.chmod(0o755)
            service: Service = sort(directory, lives_on=False)
            stack.callback(service.stop)
            bring_up(service)
            found[alias] = service.server()
        yield found


def test_a_drill_on_other_servers_needs_no_database_there_and_leaves_none(
    project: Project, postgres: Server, mariadb: Server, other_servers: dict[str, Server]
) -> None:
    here, there = on_the_servers(postgres, mariadb), on_the_servers(*other_servers.values())
    for alias, server in other_servers.items():
        elsewhere = {"NAME": "is_not_there", "PORT": server.port, "PASSWORD": server.password}
        project.databases[f"{alias}_scratch"] = {**project.databases[alias], **elsewhere}
    project.snapshots |= {
        "DRILL_DATABASES": {alias: f"{alias}_scratch" for alias in other_servers},
        "DRILL_CHECKS": [f"{CHECKS}.has_its_group", f"{CHECKS}.notes_its_server"],
    }
    project.extra_environment["DRILL_SERVERS"] = str(project.directory / "servers")
    report = told(project, "drill", "before")
    assert [item["into"] for item in report["databases"]] == ["default_scratch", "legacy_scratch"]
    asked = (project.directory / "servers").read_text().splitlines()
    assert asked == [f"drill_{alias} {server.port}" for alias, server in other_servers.items()]
    assert on_the_servers(*other_servers.values()) == there

    where = "django_snapshots.connectors.mysql.restore:MySQLRestore.check:after"
    assert dies(project, where, "snapshots", "drill", "before") == -signal.SIGKILL
    assert len(on_the_servers(*other_servers.values()) - there) == 1

    def swept() -> bool:
        project.must("snapshots", "sweep", "--collect")
        return on_the_servers(*other_servers.values()) == there

    wait_until(swept, "the sweep to remove the scratch database from the other server")
    assert on_the_servers(postgres, mariadb) == here


def test_files_that_rows_point_at_and_the_media_lack_are_told_page_by_page(project: Project) -> None:
    """More rows than are read at once, some missing at the end of a page, at the beginning of one, and in the last."""
    (project.media / "files").mkdir()
    (project.media / "files" / "there.txt").write_text("there")
    named = ["there", "lost-1", "there", "lost-3", "lost-4", "", "there", "lost-7", "there", "lost-9", "there"]
    project.call(
        "from django.db import connections\n"
        "from tests.project.models import EveryColumn\n"
        "for alias in connections:\n"
        f"    for name in {named!r}:\n"
        "        EveryColumn.objects.using(alias).create(file=name and f'files/{name}.txt')\n"
    )
    project.must("snapshots", "backup", "with-files")
    report = project.call(
        "from django_snapshots.drill import files\n"
        "files._ROWS_AT_ONCE = 2\n"
        "answer = django_snapshots.drill_snapshot('with-files')"
    )
    for database in report["databases"]:
        assert (database["files"], database["files_missing"]) == (10, 5), database
        (note,) = [note for note in database["notes"] if "files that rows point at" in note]
        assert [name for name in named if name.startswith("lost") and f"files/{name}.txt" in note] == [
            name for name in named if name.startswith("lost")
        ]
        assert "there.txt" not in note


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


@pytest.mark.parametrize(
    ("alias", "option"), [("default", "--dbname="), ("legacy", "--database=")], ids=["pg_restore", "mariadb"]
)
def test_a_worker_that_is_killed_while_a_program_loads_leaves_no_process(
    project: Project, postgres: Server, mariadb: Server, broker_url: str, alias: str, option: str
) -> None:
    """SIGKILL of its process group; the program is held still where it was found loading, so it can't just end."""
    project.broker = broker_url
    project.snapshots |= {"ATTEMPTS": 1, "SWEEP_GRACE": 0}
    project.must("snapshots", "backup", "one", "--artifact", "database", "--database", alias)
    before = on_the_servers(postgres, mariadb)
    worker = WorkerProcess(project)
    try:
        worker.ready()
        project.call("from django_snapshots.tasks import drill\ndrill.delay('one')")
        programs = {"pg_restore", "mariadb", "mysql"}
        loads = wait_until(lambda: held_still(project, programs, option), "a program to load the dump")
        assert on_the_servers(postgres, mariadb) - before
        os.killpg(worker.pid, signal.SIGKILL)
        worker.kill()
        _gone, alive = psutil.wait_procs(loads, timeout=30)
        assert not alive
        wait_until(lambda: not processes_of(project), "everything that the worker has started to end")
    finally:
        worker.teardown()
        for process in processes_of(project):
            process.kill()

    def swept() -> bool:
        project.must("snapshots", "sweep", "--collect")
        return project.runs()[-1]["state"] == "failed" and on_the_servers(postgres, mariadb) == before

    wait_until(swept, "the sweep to end the run and to remove the scratch database")
    assert not processes_of(project)


def processes_of(project: Project) -> list[psutil.Process]:
    """All with the project's mark in their environment, but for the interpreter that waits for the tests' commands."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            of_project = process.environ().get("SNAPSHOTS_TEST_DIRECTORY") == str(project.directory)
            if of_project and "tests.interpreter" not in process.cmdline():
                found.append(process)
    return found


def held_still(project: Project, programs: set[str], option: str) -> list[psutil.Process]:
    """Those *programs* of the project that have *option*, stopped where they are."""
    found = []
    for process in processes_of(project):
        with contextlib.suppress(psutil.Error):
            if process.name() in programs and any(word.startswith(option) for word in process.cmdline()):
                process.suspend()
                if process.status() == psutil.STATUS_STOPPED:
                    found.append(process)
    return found


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
    project.snapshots |= {"SWEEP_GRACE": 0, "TEMPORARY_DIRECTORY": str(project.directory / "temporary")}
    (project.directory / "temporary").mkdir()
    there = [before]
    for where in DEATHS[alias]:
        assert dies(project, where, "snapshots", "drill", "one") == -signal.SIGKILL, where
        there.append(on_the_servers(postgres, mariadb))
    left = {where: len(now - then) for where, then, now in zip(DEATHS[alias], there, there[1:], strict=False)}
    assert sum(left.values()) >= len(left) - 2, left

    def swept() -> bool:
        project.must("snapshots", "sweep", "--collect")
        drills = [run["state"] for run in project.runs() if run["kind"] == "drill"]
        return drills == ["failed"] * len(left) and on_the_servers(postgres, mariadb) == before

    wait_until(swept, f"the sweep to remove what the deaths have left: {left}")
    assert list((project.directory / "temporary").iterdir()) == []


def dies(project: Project, where: str, *arguments: str) -> int:
    """The exit status of ``manage.py`` with *arguments*, which dies at *where*."""
    code = (
        "import django\n"
        "django.setup()\n"
        "from django.core.management import execute_from_command_line\n"
        "from tests.integration.dying import arrange\n"
        f"arrange({where!r})\n"
        f"execute_from_command_line({['manage.py', *arguments]!r})\n"
    )
    return project.run("-c", code).returncode


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
    for where in (
        "django_snapshots.drill.looks:check_migrations:before",
        "django_snapshots.connectors.mysql.load:Loader.run:after",
    ):
        assert dies(project, where, "snapshots", "drill", "before") == -signal.SIGKILL
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
    where = "django_snapshots.connectors.postgres.new_database:NewDatabase.check:after"
    options = ("--database", "default", "--no-input", "--confirm", name)
    assert dies(project, where, "snapshots", "restore", "before", *options) == -signal.SIGKILL
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
