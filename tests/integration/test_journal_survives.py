"""The journal lies in the database that is restored, on every engine: it tells of all restores, and still fits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.integration.conftest import project_on
from tests.projects import Project

RESTORES = 10


@pytest.fixture(params=["postgres", "postgres in one transaction", "mariadb", "sqlite"])
def project(request: pytest.FixtureRequest) -> Project:
    """A project whose only database holds everything: its journal, its users, and their permissions."""
    made = project_on(request, request.param.split()[0])
    if "transaction" in request.param:
        made.snapshots["DATABASE_CONNECTORS"] = {"default": "tests.integration.postgres_helpers.InOneTransaction"}
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


def test_beat_does_not_catch_up_on_schedules_that_come_back(project: Project) -> None:
    """For beat they have run just now, and their rows have changed just now, so that it reads them anew."""
    project.call(
        "from datetime import datetime, UTC\n"
        "from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks\n"
        "long_ago = datetime(2020, 1, 1, tzinfo=UTC)\n"
        "every = IntervalSchedule.objects.create(every=1, period='days')\n"
        "PeriodicTask.objects.create(name='nightly', task='x', interval=every)\n"
        "PeriodicTask.objects.update(last_run_at=long_ago)\n"
        "PeriodicTasks.objects.update(last_update=long_ago)\n"
        "django_snapshots.create_snapshot('before')"
    )
    began = project.call("from django.utils import timezone\nanswer = timezone.now().isoformat()")
    replaces(project, "restore_snapshot('before', confirm={confirm!r})")
    times = project.call(
        "from django_celery_beat.models import PeriodicTask, PeriodicTasks\n"
        "answer = [PeriodicTask.objects.get(name='nightly').last_run_at.isoformat(), "
        "PeriodicTasks.objects.get().last_update.isoformat()]"
    )
    assert min(map(datetime.fromisoformat, times)) >= datetime.fromisoformat(began)
