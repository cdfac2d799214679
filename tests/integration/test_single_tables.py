"""Single tables through every way in: what they leave alone, the way back, deaths, and who is never asked for them."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings

from tests.databases import Maker
from tests.integration.conftest import entry
from tests.integration.pages import blocks
from tests.integration.sqlite_projects import content, sqlite_project, targets, write
from tests.projects import Project, WorkerProcess, wait_until
from tests.services import Server

TABLES = {"default": ["project_author"]}


class World:
    """A project on PostgreSQL with a snapshot ``before``, changed since."""

    def __init__(self, project: Project, alias: str) -> None:
        self.project, self.alias = project, alias
        project.migrate()
        self.write("project_author", "early")
        self.write("project_tag", "early")
        assert project.call("answer = django_snapshots.create_snapshot('before').name") == "before"
        self.write("project_author", "changed")
        self.write("project_tag", "changed")

    @property
    def name(self) -> str:
        return str(settings.DATABASES[self.alias]["NAME"])

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        place = settings.DATABASES[self.alias]
        with psycopg.connect(
            host=place["HOST"],
            port=place["PORT"],
            user=place["USER"],
            password=place["PASSWORD"],
            dbname=place["NAME"],
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def write(self, table: str, name: str) -> None:
        self.query(f"DELETE FROM {table}; INSERT INTO {table} (name) VALUES ('{name}')")

    def require(self, **tables: str) -> None:
        for table, name in tables.items():
            assert self.query(f"SELECT name FROM project_{table}") == [(name,)], table

    def restored(self, **arguments: Any) -> dict[str, Any]:
        arguments = {"confirm": [self.name], "tables": TABLES, **arguments}
        report: dict[str, Any] = self.project.call(
            f"answer = django_snapshots.restore_snapshot('before', **{arguments!r})"
        )
        return report

    def undone(self, run: str | None = None) -> dict[str, Any]:
        report: dict[str, Any] = self.project.call(
            f"answer = django_snapshots.undo_restore({run!r}, confirm={[self.name]!r})"
        )
        assert "undone" in report, report
        return report


@pytest.fixture
def world(make_postgres: Maker, postgres: Server, tmp_path: Path) -> World:
    alias = make_postgres()
    project = Project(
        directory=tmp_path / "project",
        databases={"default": entry(alias)},
        snapshots={"ARTIFACTS": ["database", "media"], "LEASE": 2, "SWEEP_GRACE": 0},
    )
    project.extra_environment["PATH"] = f"{postgres.bin_directory}:{project.environment()['PATH']}"
    (project.media / "picture.png").write_text("early")
    return World(project, alias)


def test_only_these_rows_come_back_and_the_undo_takes_only_these(world: World) -> None:
    (world.project.media / "picture.png").write_text("changed")
    report = world.restored()
    world.require(author="early", tag="changed")
    assert (world.project.media / "picture.png").read_text() == "changed"
    assert [item["tables"] for item in report["restored"]] == [["project_author"]]
    assert "the table project_author of PostgreSQL database" in report["restored"][0]["target"]
    assert report["kept"] == []
    assert len(report["safety"]) == 1
    (run,) = [run for run in world.project.runs() if run["kind"] == "restore"]
    assert run["request"]["tables"] == TABLES
    world.write("project_tag", "after the restore")
    first = world.undone(report["undo"])
    assert "project_author" in first["targets"][0]
    world.require(author="changed", tag="after the restore")
    second = world.undone(first["undo"])
    world.require(author="early", tag="after the restore")
    world.undone(second["undo"])
    world.require(author="changed", tag="after the restore")


def test_the_undo_needs_no_journal(world: World) -> None:
    run = world.restored()["undo"]
    world.write("project_tag", "after the restore")
    world.query("DROP TABLE django_snapshots_step, django_snapshots_run CASCADE")
    (kept,) = json.loads(world.project.must("snapshots", "undo", "--list", "--format", "json"))
    assert (kept["run"], kept["tables"]) == (run, ["project_author"])
    assert "the table project_author" in world.project.must("snapshots", "undo", "--list")
    assert "the undo of: the table project_author" in world.project.must("snapshots", "info", kept["snapshot"])
    world.undone()
    world.require(author="changed", tag="after the restore")


def test_what_it_keeps_does_not_push_out_what_whole_restores_keep(world: World) -> None:
    whole = world.project.call(
        f"answer = django_snapshots.restore_snapshot('before', databases=['default'], confirm={[world.name]!r})"
    )["undo"]
    for _ in range(3):
        last = world.restored()["undo"]
    kept = json.loads(world.project.must("snapshots", "undo", "--list", "--format", "json"))
    assert kept[0]["run"] == last
    assert len(kept) == 3
    assert kept[-1]["run"] == whole


def test_the_command(world: World) -> None:
    command = ("snapshots", "restore", "before", "--table", "default=project_author", "--table", "default=project_book")
    report = json.loads(world.project.must(*command, "--check", "--format", "json"))
    assert report["possible"]
    assert "the tables project_author, project_book of PostgreSQL" in report["targets"][0]
    assert any("safety copy of the whole database" in text for text in report["warnings"])
    assert any("project_authorship" in text for text in report["warnings"])
    world.require(author="changed", tag="changed")
    refused = world.project.manage(*command, "--table", "default=nothing", "--check")
    assert refused.returncode == 5
    assert "lacks the table nothing" in refused.stdout
    asked = world.project.manage(*command, stdin=f"{world.name}\n")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "will replace the tables project_author, project_book of PostgreSQL database" in asked.stdout
    world.require(author="early", tag="changed")


def test_the_page_of_the_documentation(world: World) -> None:
    text = "\n".join(block.text for block in blocks(page="docs/how-to/single-tables.md"))
    for theirs, ours in (("before-deploy", "before"), ("shop_order", "project_author"), ("shop_line", "project_book")):
        text = text.replace(theirs, ours)
    check, restore, undo = text.splitlines()
    for line, author in ((check, "changed"), (restore, "early"), (undo, "changed")):
        _python, _manage, *arguments = shlex.split(line)
        done = world.project.manage(*arguments, stdin=f"{world.name}\n")
        assert done.returncode == 0, done.stdout + done.stderr
        world.require(author=author, tag="changed")


def test_without_a_confirmation_nothing_happens(world: World) -> None:
    answer = world.restored(confirm=[])
    assert answer["type"] == "SnapshotConfirmationError"
    assert "the table project_author" in answer["error"]
    world.require(author="changed")


@pytest.mark.parametrize(
    ("besides", "said"),
    [
        ({"artifacts": ["database", "media"]}, "leaves out 'media'"),
        ({"database_names": {"default": "copy"}}, "can't go into a database of another name"),
        ({"migrate": True}, "nothing to migrate"),
        ({"tables": {"other": ["project_author"]}}, "holds no database 'other'"),
        ({"tables": {"default": ["django_snapshots_run"]}}, "has the runs of this package"),
        ({"tables": {"default": ["project_gone"]}}, "lacks the table project_gone"),
    ],
)
def test_what_is_refused_touches_nothing(world: World, besides: dict[str, Any], said: str) -> None:
    answer = world.restored(**besides)
    assert said in answer["error"], answer
    assert answer["type"] == "SnapshotPreflightError"
    assert [name for name in world.project.stored() if "safety" in name] == []
    world.require(author="changed", tag="changed")


def test_rows_that_would_point_at_nothing_leave_everything(world: World) -> None:
    world.query(
        "INSERT INTO project_book (id, title) VALUES (1, 'late'); "
        "INSERT INTO project_authorship (author_id, book_id, share) SELECT id, 1, 1 FROM project_author"
    )
    answer = world.restored()
    assert "1 by " in answer["error"], answer
    assert "of public.project_authorship" in answer["error"]
    world.require(author="changed", tag="changed")


def test_into_another_alias(world: World, make_postgres: Maker) -> None:
    theirs = second_alias(world, make_postgres)
    report = world.restored(into={"default": "other"}, confirm=[theirs.name])
    assert "undo" in report, report
    theirs.require(author="early", tag="theirs")
    world.require(author="changed", tag="changed")
    world.project.call(f"answer = django_snapshots.undo_restore(confirm={[theirs.name]!r})")
    theirs.require(author="theirs", tag="theirs")
    world.require(author="changed", tag="changed")


def test_a_worker_restores_them(world: World, broker_url: str) -> None:
    world.project.broker = broker_url
    world.project.snapshots["ALLOW_RESTORE"] = "requested"
    world.project.call(
        f"answer = django_snapshots.request_restore('before', tables={TABLES!r}, confirm={[world.name]!r}).id"
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


KILLS = {
    "before the commit": "kills(sql)\n    return ask(self, sql)",
    "after the commit": "said = ask(self, sql)\n    kills(sql)\n    return said",
}


def killed(world: World, body: str, **arguments: Any) -> None:
    """A process that restores, and dies at a COMMIT as *body* says."""
    done = world.project.run(
        "-c",
        "import os, signal, django\ndjango.setup()\n"
        "import django_snapshots\nfrom django_snapshots.connectors.postgres.session import Session\n"
        "commits = []\n"
        "def kills(sql, at=1):\n    if 'COMMIT;' in sql:\n        commits.append(sql)\n"
        "        if len(commits) == at:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        f"ask = Session.ask\ndef killing(self, sql):\n    {body}\n"
        "Session.ask = killing\n"
        f"django_snapshots.restore_snapshot(**{arguments!r})",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moment", KILLS)
def test_a_process_that_is_killed_at_the_commit(world: World, moment: str) -> None:
    """The next sweep says which of the two it is; a restore that has happened can be undone, table by table."""
    killed(world, KILLS[moment], name="before", tables=TABLES, confirm=[world.name])
    ended = wait_until(lambda: swept(world), "the end of the run")
    if moment == "before the commit":
        assert ended["state"] == "failed"
        world.require(author="changed", tag="changed")
        return
    assert ended["state"] == "succeeded"
    assert ended["result"]["restored"][0]["tables"] == ["project_author"]
    world.require(author="early", tag="changed")
    world.write("project_tag", "after the restore")
    world.undone(str(ended["id"]).replace("-", ""))
    world.require(author="changed", tag="after the restore")


def test_a_process_that_is_killed_between_two_commits(world: World, make_postgres: Maker) -> None:
    """What is committed stays, the run says so, and its undo brings it back."""
    theirs = second_alias(world, make_postgres)
    theirs.write("project_author", "early")
    world.write("project_author", "early")
    assert world.project.call("answer = django_snapshots.create_snapshot('both').name") == "both"
    for one in (world, theirs):
        one.write("project_author", "changed")
    tables = {"default": ["project_author"], "other": ["project_author"]}
    body = "kills(sql, 2)\n    return ask(self, sql)"
    killed(world, body, name="both", tables=tables, confirm=[world.name, theirs.name])
    ended = wait_until(lambda: swept(world), "the end of the run")
    assert ended["state"] == "failed"
    states = {one.query("SELECT name FROM project_author")[0][0] for one in (world, theirs)}
    assert states == {"early", "changed"}, states
    assert "Restored already is the table project_author of PostgreSQL database" in ended["error"]
    assert "As it was before: the table project_author of PostgreSQL database" in ended["error"]
    run = str(ended["id"]).replace("-", "")
    assert f"snapshots undo {run}" in ended["error"]
    assert len(safety_copies(world)) == 1, "what was not changed needs no copy"
    (untouched,) = [one for one in (world, theirs) if one.query("SELECT name FROM project_author") == [("changed",)]]
    untouched.write("project_author", "written since")
    report = world.project.call(
        f"answer = django_snapshots.undo_restore({run!r}, confirm={[world.name, theirs.name]!r})"
    )
    assert "undone" in report, report
    for one in (world, theirs):
        one.require(author="written since" if one is untouched else "changed")


def safety_copies(world: World) -> list[str]:
    """The names of those that are there."""
    return sorted({name.split("/")[0] for name in world.project.stored() if name.startswith("safety-")})


def test_a_restore_that_is_stopped_leaves_no_safety_copy(world: World) -> None:
    answer = world.project.call(
        "from django_snapshots.signals import pre_restore\n"
        "def stop(**_):\n    raise ValueError('not today')\n"
        "pre_restore.connect(stop)\n"
        f"answer = django_snapshots.restore_snapshot('before', tables={TABLES!r}, confirm={[world.name]!r})"
    )
    assert "not today" in answer["error"], answer
    world.require(author="changed")
    assert safety_copies(world) == []


def test_a_restore_that_failed_is_not_what_an_undo_means(world: World) -> None:
    """Nor does the safety copy of one that changed nothing push out what others have replaced."""
    world.write("project_author", "original")
    world.restored()
    (copy,) = safety_copies(world)
    killed(world, KILLS["before the commit"], name="before", tables=TABLES, confirm=[world.name])
    wait_until(lambda: swept(world, position=-1), "the end of the run")
    assert safety_copies(world) == [copy]
    world.undone(None)
    world.require(author="original")


def second_alias(world: World, make_postgres: Maker) -> World:
    other = make_postgres()
    world.project.databases["other"] = entry(other)
    world.project.snapshots["DATABASES"] = ["default", "other"]
    world.project.migrate()
    theirs = object.__new__(World)
    theirs.project, theirs.alias = world.project, other
    theirs.write("project_author", "theirs")
    theirs.write("project_tag", "theirs")
    return theirs


def swept(world: World, position: int = 0) -> dict[str, Any] | None:
    world.project.must("snapshots", "sweep")
    run = [run for run in world.project.runs() if run["kind"] == "restore"][position]
    return run if run["state"] in ("succeeded", "failed") else None


class Whole:
    """A connector of two methods, which knows nothing of tables."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        dest.write_text("everything")
        return {}

    def restore(self, db_alias: str, src: Path) -> None:
        raise AssertionError("It was asked for single tables.")


@pytest.mark.parametrize("connector", ["dumpdata", "tests.integration.test_single_tables.Whole"])
def test_who_restores_only_the_whole_is_never_asked(tmp_path: Path, connector: str) -> None:
    project = sqlite_project(tmp_path, aliases=("default",), DATABASE_CONNECTORS={"default": connector})
    project.call("django_snapshots.create_snapshot('before')")
    write(project, "default", "changed")
    call = f"'before', confirm={targets(project)!r}, tables={{'default': ['auth_group']}}"
    answer = project.call(f"answer = django_snapshots.restore_snapshot({call})")
    assert answer["type"] == "SnapshotPreflightError"
    assert "restores only the whole, and not the table auth_group alone" in answer["error"]
    assert content(project) == ["changed"]
    assert [name for name in project.stored() if "safety" in name] == []
