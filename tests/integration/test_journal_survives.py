"""The journal lies in the database that is restored, on every engine: it tells of all restores, and still fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import entry
from tests.projects import Project
from tests.services import Server

RESTORES = 10


@pytest.fixture(params=["postgres", "postgres in one transaction", "mariadb", "sqlite"])
def project(request: pytest.FixtureRequest, tmp_path: Path, postgres: Server) -> Project:
    """A project whose only database holds everything: its journal, its users, and their permissions."""
    engine = request.param.split()[0]
    alias = request.getfixturevalue(f"make_{engine}")()
    made = Project(directory=tmp_path / "project", databases={"default": entry(alias)}, snapshots={})
    made.extra_environment["PATH"] = f"{postgres.bin_directory}:{made.environment()['PATH']}"
    if "transaction" in request.param:
        made.snapshots["DATABASE_CONNECTORS"] = {"default": "tests.integration.postgres_helpers.InOneTransaction"}
    made.snapshots["ARTIFACTS"] = ["database"]
    made.migrate()
    return made


def people(project: Project) -> Any:
    return project.call(
        "from django.contrib.auth.models import User\n"
        "answer = sorted([user.username, sorted(user.get_all_permissions())] for user in User.objects.all())"
    )


def add(project: Project, name: str) -> None:
    project.call(
        "from django.contrib.auth.models import Permission, User\n"
        f"user = User.objects.create(username={name!r})\n"
        "user.user_permissions.set(Permission.objects.filter(codename__in=['restore_snapshot', 'view_run']))"
    )


def replaces(project: Project, call: str) -> dict[str, Any]:
    name = project.call(
        "from django_snapshots.conf import get_settings\n"
        "answer = get_settings().kind('database').target('default').name"
    )
    report: dict[str, Any] = project.call(f"answer = django_snapshots.{call.format(confirm=[name])}")
    assert "undo" in report, report
    return report


def told(project: Project, kind: str) -> set[str]:
    rows = [run for run in project.runs() if run["kind"] == kind]
    assert {run["state"] for run in rows} == {"succeeded"}
    return {str(run["id"]).replace("-", "") for run in rows}


def test_ten_restores_and_an_undo_leave_a_journal_that_tells_of_all(project: Project) -> None:
    add(project, "early")
    before = people(project)
    project.call("django_snapshots.create_snapshot('before')")
    add(project, "late")
    changed = people(project)
    made = {replaces(project, "restore_snapshot('before', confirm={confirm!r})")["undo"] for _ in range(RESTORES - 1)}
    assert people(project) == before
    add(project, "late")
    last = replaces(project, "restore_snapshot('before', confirm={confirm!r})")["undo"]
    assert people(project) == before
    assert told(project, "restore") == {*made, last}
    report = replaces(project, "undo_restore(confirm={confirm!r})")
    assert report["undone"] == last
    assert people(project) == changed
    assert told(project, "restore") == {*made, last}
    assert told(project, "undo") == {report["undo"]}
    assert project.manage("migrate", "--check").returncode == 0


def test_a_snapshot_older_than_the_journals_tables_fits_afterwards(project: Project) -> None:
    """It was taken when they were not there yet; then they came, with runs, and permissions for users."""
    project.must("migrate", "django_snapshots", "zero")
    project.call(
        "from django.contrib.auth.models import Permission\n"
        "from django.contrib.contenttypes.models import ContentType\n"
        "Permission.objects.filter(content_type__app_label='django_snapshots').delete()\n"
        "ContentType.objects.filter(app_label='django_snapshots').delete()"
    )
    project.call("django_snapshots.create_snapshot('before')")
    project.migrate()
    add(project, "late")
    project.call("django_snapshots.verify_snapshot('before')")
    run = replaces(project, "restore_snapshot('before', confirm={confirm!r})")["undo"]
    assert people(project) == []
    assert told(project, "restore") == {run}
    assert len(told(project, "verify")) == 1
    assert project.manage("migrate", "--check").returncode == 0
    add(project, "after")
    assert people(project) == [["after", ["django_snapshots.restore_snapshot", "django_snapshots.view_run"]]]
