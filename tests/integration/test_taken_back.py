"""What a restore, or an undo, had put in place before another target failed: taken back, and kept with all that was
written to it meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import mariadb_cursor, postgres_cursor
from tests.integration.conftest import entry
from tests.integration.sqlite_projects import sqlite_project
from tests.projects import Project, wait_until
from tests.services import Server

FULL = """
from django.contrib.auth.models import Group
from django_snapshots.artifacts.media import PreparedMedia
from django_snapshots.exceptions import SnapshotArtifactError
from django_snapshots.transfer import SwitchRank
PreparedMedia.switch_rank = SwitchRank.IN_PLACE  # the databases first
def switch(self):
    Group.objects.using('other').create(name='written meanwhile')
    raise SnapshotArtifactError('The disk is full. The media files are as they were.')
PreparedMedia.switch = switch
"""
"""From here on the media files can't be switched; a client writes to the database that was switched before them."""


def _leave_nothing(request: pytest.FixtureRequest) -> None:
    postgres: Server = request.getfixturevalue("postgres")
    with postgres_cursor(postgres) as cursor:
        found = cursor.execute("SELECT datname FROM pg_database WHERE datname ~ '^django_snapshots_'").fetchall()
        for (name,) in found:
            cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _leave_no_schemas(request: pytest.FixtureRequest) -> None:
    with mariadb_cursor(request.getfixturevalue("mariadb")) as cursor:
        cursor.execute("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'django_snapshots%'")
        for (name,) in cursor.fetchall():
            cursor.execute(f"DROP DATABASE `{name}`")


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """With a snapshot ``before`` of a database and the media, both changed since; the journal is elsewhere."""
    made = sqlite_project(tmp_path, aliases=("default",) if request.param != "sqlite" else ("default", "other"))
    if request.param != "sqlite":
        made.databases["other"] = entry(request.getfixturevalue(f"make_{request.param}")())
        made.migrate()
    if request.param == "postgres":
        tools = request.getfixturevalue("postgres").bin_directory
        made.extra_environment["PATH"] = f"{tools}:{made.environment()['PATH']}"
    write(made, "in the snapshot")
    taken = made.call("answer = django_snapshots.create_snapshot('before', artifacts=['database', 'media']).name")
    assert taken == "before"
    write(made, "before the restore")
    (made.media / "picture.png").write_text("changed")
    yield made
    if request.param == "postgres":
        _leave_nothing(request)
    if request.param == "mariadb":
        _leave_no_schemas(request)


def write(project: Project, name: str) -> None:
    """Make *name* the one content of the database."""
    code = "from django.contrib.auth.models import Group\nrows = Group.objects.using('other')\n"
    project.call(f"{code}rows.all().delete()\nrows.create(name={name!r})")


def content(project: Project) -> list[str]:
    """What the database holds."""
    code = "from django.contrib.auth.models import Group\n"
    found: list[str] = project.call(
        f"{code}answer = sorted(Group.objects.using('other').values_list('name', flat=True))"
    )
    return found


def parts(project: Project) -> dict[str, Any]:
    """The arguments of a restore of the database and the media."""
    return {"databases": ["other"], "artifacts": ["database", "media"], "confirm": names(project)}


def names(project: Project) -> list[str]:
    return [str(project.databases["other"]["NAME"]), str(project.media)]


def kept(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(project.must("snapshots", "undo", "--list", "--format", "json"))
    return found


def restored(project: Project, before: str = "") -> dict[str, Any]:
    report: dict[str, Any] = project.call(
        f"{before}answer = django_snapshots.restore_snapshot('before', **{parts(project)!r})"
    )
    return report


def undone(project: Project, run: str, before: str = "", **part: Any) -> dict[str, Any]:
    arguments = {"confirm": names(project), **part}
    report: dict[str, Any] = project.call(f"{before}answer = django_snapshots.undo_restore({run!r}, **{arguments!r})")
    return report


def test_what_is_written_before_a_restore_fails_is_kept(project: Project) -> None:
    failed = restored(project, FULL)
    assert failed["type"] == "SnapshotArtifactError", failed
    assert "The disk is full" in failed["error"]
    assert "is as it was before" in failed["error"]
    assert "snapshots undo --list" in failed["error"]
    assert content(project) == ["before the restore"]
    assert (project.media / "picture.png").read_text() == "changed"
    (state,) = kept(project)
    assert (state["type"], state["subject"], state["replaced_by"]) == ("database", "other", None)
    assert state["expires_at"]
    # Nobody means it by "the latest": it is nothing that a restore has replaced.
    assert project.call("answer = django_snapshots.undo_restore()")["type"] == "SnapshotNotFoundError"
    assert "undone" in undone(project, state["run"])
    assert content(project) == ["in the snapshot", "written meanwhile"]


def test_an_undo_that_fails_can_be_made_again(project: Project) -> None:
    run = restored(project)["undo"]
    assert content(project) == ["in the snapshot"]
    expires = {item["subject"]: item["expires_at"] for item in kept(project)}
    failed = undone(project, run, FULL)
    assert failed["type"] == "SnapshotArtifactError", failed
    assert content(project) == ["in the snapshot"]
    # What it has taken away again is still what the restore has replaced, and goes when it was to go.
    assert {(item["run"], item["subject"]) for item in kept(project)} == {(run, "other"), (run, "media")}
    assert {item["subject"]: item["expires_at"] for item in kept(project)} == expires
    again = undone(project, run)
    assert "undone" in again, again
    assert content(project) == ["before the restore", "written meanwhile"]
    assert (project.media / "picture.png").read_text() == "changed"
    assert "undone" in undone(project, again["undo"])
    assert content(project) == ["in the snapshot"]


def test_a_worker_that_dies_in_the_middle_of_an_undo_leaves_one_that_can_be_made_again(project: Project) -> None:
    run = restored(project)["undo"]
    project.snapshots |= {"LEASE": 5}
    killed = "import os, signal\nfrom django_snapshots.artifacts.media import PreparedMedia\n"
    killed += (
        "PreparedMedia.switch_rank = 1\nPreparedMedia.switch = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = project.run("-c", _script(f"{killed}django_snapshots.undo_restore({run!r}, confirm={names(project)!r})"))
    assert died.returncode < 0, died.stderr
    assert content(project) == ["before the restore"]
    _swept_until_it_ends(project)
    undo = project.runs()[-1]
    assert (undo["kind"], undo["state"]) == ("undo", "failed")
    assert "gave no sign of life for 5 s" in undo["error"]
    assert content(project) == ["in the snapshot"]
    assert {(item["run"], item["subject"]) for item in kept(project)} == {(run, "other"), (run, "media")}
    assert "undone" in undone(project, run)
    assert content(project) == ["before the restore"]


KILLED = """
import os, signal
from django_snapshots.artifacts.database import DatabaseArtifact
bring_back = DatabaseArtifact.bring_back
def brought_back(*arguments):
    prepared = bring_back(*arguments)
    switch = prepared.switch
    def killed():
        if {after}:
            switch()
        os.kill(os.getpid(), signal.SIGKILL)
    prepared.switch = killed
    return prepared
DatabaseArtifact.bring_back = brought_back
"""


@pytest.mark.parametrize("after", [False, True])
def test_who_dies_while_it_takes_back_is_settled_with_both_marks(project: Project, after: bool) -> None:
    project.snapshots |= {"LEASE": 5}
    code = f"{FULL}{KILLED.format(after=after)}django_snapshots.restore_snapshot('before', **{parts(project)!r})"
    died = project.run("-c", _script(code))
    assert died.returncode < 0, died.stderr
    assert content(project) == (["before the restore"] if after else ["in the snapshot", "written meanwhile"])
    _swept_until_it_ends(project)
    restore = project.runs()[-1]
    assert (restore["kind"], restore["state"]) == ("restore", "failed")
    assert "As it was before" in restore["error"]
    assert content(project) == ["before the restore"]
    assert (project.media / "picture.png").read_text() == "changed"
    (state,) = kept(project)
    assert "undone" in undone(project, state["run"])
    assert content(project) == ["in the snapshot", "written meanwhile"]


def _script(code: str) -> str:
    begin = "import django\nfrom tests.celery_app import app\napp.set_current(); django.setup()\n"
    return f"{begin}import django_snapshots\n{code}"


def _swept_until_it_ends(project: Project) -> None:
    def ended() -> bool:
        project.manage("snapshots", "sweep")
        return bool(project.runs()[-1]["state"] == "failed")

    wait_until(ended, "the undo to be settled")
