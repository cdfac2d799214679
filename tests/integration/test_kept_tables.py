"""Single tables whose rows are kept beside the database, MariaDB and SQLite: every way in, the way back, deaths."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.databases import Maker, mariadb_cursor
from tests.integration.conftest import entry
from tests.integration.mysql_support import query
from tests.projects import Project, WorkerProcess, wait_until
from tests.services import Server

TABLES = {"default": ["project_author"]}
HOOKS = {
    "mariadb": "from django_snapshots.connectors.mysql import row_exchange as rows",
    "sqlite": "from django_snapshots.connectors import sqlite_rows as rows",
}
BEFORE = {"mariadb": "proved", "sqlite": "replaced"}
AFTER = {"mariadb": "committed", "sqlite": "switched"}


class World:
    """A project with a snapshot ``before``, changed since."""

    def __init__(self, project: Project, engine: str, **aliases: str) -> None:
        self.project, self.engine, self.aliases = project, engine, aliases
        project.migrate()
        for alias in aliases:
            self.write("author", "early", alias)
            self.write("tag", "early", alias)
        assert project.call("answer = django_snapshots.create_snapshot('before').name") == "before"
        for alias in aliases:
            self.write("author", "changed", alias)
            self.write("tag", "changed", alias)

    @property
    def names(self) -> list[str]:
        return [str(settings.DATABASES[alias]["NAME"]) for alias in self.aliases.values()]

    def query(self, statement: str, alias: str = "default") -> list[tuple[Any, ...]]:
        return query(self.aliases[alias], statement)

    def write(self, table: str, name: str, alias: str = "default") -> None:
        self.query(f"DELETE FROM project_{table}", alias)
        self.query(f"INSERT INTO project_{table} (name) VALUES ('{name}')", alias)

    def require(self, alias: str = "default", **tables: str) -> None:
        for table, name in tables.items():
            assert self.query(f"SELECT name FROM project_{table}", alias) == [(name,)], table

    def restored(self, **arguments: Any) -> dict[str, Any]:
        arguments = {"confirm": self.names, "tables": TABLES, **arguments}
        report: dict[str, Any] = self.project.call(
            f"answer = django_snapshots.restore_snapshot('before', **{arguments!r})"
        )
        return report

    def undone(self, run: str | None = None) -> dict[str, Any]:
        report: dict[str, Any] = self.project.call(
            f"answer = django_snapshots.undo_restore({run!r}, confirm={self.names!r})"
        )
        assert "undone" in report, report
        return report

    def killed(self, call: str, phase: str) -> None:
        done = self.project.run(
            "-c",
            "import os, signal, django\ndjango.setup()\nimport django_snapshots\n"
            f"{HOOKS[self.engine]}\n"
            f"def reached(phase):\n    if phase == {phase!r}:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
            f"rows._reached = reached\ndjango_snapshots.{call}",
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    def swept(self, kind: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            self.project.must("snapshots", "sweep")
            (run,) = [run for run in self.project.runs() if run["kind"] == kind]
            return run if run["state"] in ("succeeded", "failed") else None

        return wait_until(ended, "the end of the run")


@pytest.fixture(params=["mariadb", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    engine: str = request.param
    make: Maker = request.getfixturevalue(f"make_{engine}")
    alias = make()
    project = Project(
        directory=tmp_path / "project",
        databases={"default": entry(alias)},
        snapshots={"ARTIFACTS": ["database", "media"], "LEASE": 2, "SWEEP_GRACE": 0},
    )
    (project.media / "picture.png").write_text("early")
    return World(project, engine, default=alias)


def test_only_these_rows_come_back_and_the_undo_takes_only_these(world: World) -> None:
    (world.project.media / "picture.png").write_text("changed")
    report = world.restored()
    assert "undo" in report, report
    world.require(author="early", tag="changed")
    assert (world.project.media / "picture.png").read_text() == "changed"
    assert [item["tables"] for item in report["restored"]] == [["project_author"]]
    # No safety copy: what the tables were is beside the database.
    assert report["safety"] == []
    assert "the table project_author of" in report["kept"][0]
    assert [name for name in world.project.stored() if "safety" in name] == []
    world.write("tag", "after the restore")
    first = world.undone(report["undo"])
    assert "project_author" in first["targets"][0]
    world.require(author="changed", tag="after the restore")
    second = world.undone(first["undo"])
    world.require(author="early", tag="after the restore")
    world.undone(second["undo"])
    world.require(author="changed", tag="after the restore")


def test_the_undo_needs_no_journal(world: World) -> None:
    run = world.restored()["undo"]
    world.write("tag", "after the restore")
    for table in ("lock", "housekeeping", "step", "run"):
        world.query(f"DROP TABLE django_snapshots_{table}")
    (kept,) = json.loads(world.project.must("snapshots", "undo", "--list", "--format", "json"))
    assert (kept["run"], kept["tables"], kept["snapshot"]) == (run, ["project_author"], None)
    assert "the table project_author" in world.project.must("snapshots", "undo", "--list")
    world.undone()
    world.require(author="changed", tag="after the restore")


def test_what_it_keeps_does_not_push_out_what_whole_restores_keep(world: World) -> None:
    confirm = world.names
    whole = world.project.call(
        f"answer = django_snapshots.restore_snapshot('before', databases=['default'], confirm={confirm!r})"
    )["undo"]
    for _ in range(3):
        last = world.restored()["undo"]
    kept = json.loads(world.project.must("snapshots", "undo", "--list", "--format", "json"))
    assert kept[0]["run"] == last
    assert len(kept) == 3
    assert kept[-1]["run"] == whole
    # One that brings back the whole brings back the whole.
    world.write("tag", "since")
    world.undone(whole)
    world.require(author="changed", tag="changed")


def test_the_command(world: World) -> None:
    command = ("snapshots", "restore", "before", "--table", "default=project_author", "--table", "default=project_book")
    report = json.loads(world.project.must(*command, "--check", "--format", "json"))
    assert report["possible"], report
    assert not [text for text in report["warnings"] if "safety copy" in text]
    refused = world.project.manage(*command, "--table", "default=nothing", "--check")
    assert refused.returncode == 5
    assert "lacks the table nothing" in refused.stdout
    asked = world.project.manage(*command, stdin=f"{world.names[0]}\n")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    world.require(author="early", tag="changed")


def test_rows_that_would_point_at_nothing_leave_everything(world: World) -> None:
    world.query("INSERT INTO project_book (id, title) VALUES (1, 'late')")
    world.query("INSERT INTO project_authorship (author_id, book_id, share) SELECT id, 1, 1 FROM project_author")
    answer = world.restored()
    assert "1 by the foreign key" in answer["error"], answer
    assert "of project_authorship to project_author" in answer["error"]
    world.require(author="changed", tag="changed")
    assert json.loads(world.project.must("snapshots", "undo", "--list", "--format", "json")) == []


def test_a_worker_restores_them(world: World, broker_url: str) -> None:
    """The journal is in the very database: the worker has to write to it until the switch, and right after it."""
    world.project.broker = broker_url
    world.project.snapshots["ALLOW_RESTORE"] = "requested"
    world.project.call(
        f"answer = django_snapshots.request_restore('before', tables={TABLES!r}, confirm={world.names!r}).id"
    )
    worker = WorkerProcess(world.project)
    try:
        wait_until(
            lambda: (
                world.query("SELECT state FROM django_snapshots_run WHERE kind = 'restore'")
                in ([("succeeded",)], [("failed",)])
            ),
            "the end of the restore",
        )
    finally:
        worker.teardown()
    world.require(author="early", tag="changed")


@pytest.mark.parametrize("switched", [False, True])
def test_a_process_that_is_killed_at_the_commit(world: World, switched: bool) -> None:
    phase = (AFTER if switched else BEFORE)[world.engine]
    world.killed(f"restore_snapshot('before', tables={TABLES!r}, confirm={world.names!r})", phase)
    ended = world.swept("restore")
    if not switched:
        assert ended["state"] == "failed"
        world.require(author="changed", tag="changed")
        assert json.loads(world.project.must("snapshots", "undo", "--list", "--format", "json")) == []
        return
    assert ended["state"] == "succeeded"
    assert ended["result"]["restored"][0]["tables"] == ["project_author"]
    world.require(author="early", tag="changed")
    world.write("tag", "after the restore")
    world.killed(f"undo_restore(confirm={world.names!r})", phase)
    assert world.swept("undo")["state"] == "succeeded"
    world.require(author="changed", tag="after the restore")
    world.undone()
    world.require(author="early", tag="after the restore")


def test_of_two_databases_those_that_were_switched_are_brought_back(
    make_mariadb: Maker, make_sqlite: Maker, mariadb: Server, tmp_path: Path
) -> None:
    first, second = make_sqlite(), make_mariadb()
    project = Project(
        directory=tmp_path / "project",
        databases={"default": entry(first), "other": entry(second)},
        snapshots={"ARTIFACTS": ["database"], "LEASE": 2, "SWEEP_GRACE": 0},
    )
    world = World(project, "mariadb", default=first, other=second)
    tables = {"default": ["project_author"], "other": ["project_author"]}
    world.killed(f"restore_snapshot('before', tables={tables!r}, confirm={world.names!r})", "proved")
    ended = world.swept("restore")
    assert ended["state"] == "failed"
    assert "As it was before" in ended["error"], ended
    for alias in world.aliases:
        world.require(alias, author="changed", tag="changed")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(r"SHOW DATABASES LIKE 'django\_snapshots\_%'")
        assert cursor.fetchall() == ()
