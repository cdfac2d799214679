"""A restore and the project's code: migrations then and now, versions, and models that point at the journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import django
import pytest

from django_snapshots import LocalFileSystemBackend
from django_snapshots.artifacts.environment import installed_packages
from django_snapshots.catalog import Catalog
from tests.integration.conftest import project_on
from tests.integration.sqlite_projects import sqlite_project, targets
from tests.projects import ROOT, Project

ORDER = """
        migrations.CreateModel("Order", [("id", models.BigAutoField(primary_key=True))]),
"""
NOTE = """
        migrations.RunPython(somebody_is_ready, migrations.RunPython.noop),
        migrations.AddField("Order", "note", models.CharField(max_length=20, default="")),
"""
MIGRATION = """
from django.db import migrations, models


def somebody_is_ready(apps, schema_editor):
    from django.contrib.auth.models import Group

    if not Group.objects.using(schema_editor.connection.alias).filter(name="ready").exists():
        raise ValueError("nobody is ready for the column")


class Migration(migrations.Migration):
    dependencies = [{dependencies}]
    operations = [{operations}]
"""


def with_shop(project: Project, models: str = "") -> Project:
    """The project with an app of its own, ``shop``, which has one migration."""
    (project.directory / "shop" / "migrations").mkdir(parents=True)
    for name in ("shop", "shop/migrations"):
        (project.directory / name / "__init__.py").touch()
    (project.directory / "shop" / "models.py").write_text(models)
    (project.directory / "shop_settings.py").write_text(
        "from tests.settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'shop']\n"
    )
    project.extra_environment["DJANGO_SETTINGS_MODULE"] = "shop_settings"
    project.extra_environment["PYTHONPATH"] = f"{project.directory}:{ROOT}"
    migration(project, "0001_initial", ORDER)
    return project


def migration(project: Project, name: str, operations: str, after: str = "") -> Path:
    """Write a migration of the shop."""
    dependencies = f'("shop", "{after}")' if after else '("auth", "0012_alter_user_first_name_max_length")'
    file = project.directory / "shop" / "migrations" / f"{name}.py"
    file.write_text(MIGRATION.format(dependencies=dependencies, operations=operations))
    return file


def newer(project: Project, *, fits: bool) -> Path:
    """The snapshot ``before``, then the shop's second migration, which *fits* the snapshot's rows as well."""
    project.migrate()
    ready = "from django.contrib.auth.models import Group\nGroup.objects.create(name='ready')"
    if fits:
        project.call(ready)
    project.call("django_snapshots.create_snapshot('before')")
    if not fits:
        project.call(ready)
    made = migration(project, "0002_note", NOTE, after="0001_initial")
    project.migrate()
    return made


def is_ready(project: Project) -> bool:
    return bool(
        project.call(
            "from django.contrib.auth.models import Group\nanswer = Group.objects.filter(name='ready').exists()"
        )
    )


def has_note(project: Project) -> bool:
    columns = (
        "from django.db import connection\n"
        "with connection.cursor() as cursor:\n"
        "    found = connection.introspection.get_table_description(cursor, 'shop_order')\n"
        "answer = [column.name for column in found]"
    )
    return "note" in project.call(columns)


def confirmed(project: Project) -> list[str]:
    return [
        "--no-input",
        "--confirm",
        project.call(
            "from django_snapshots.conf import get_settings\n"
            "answer = get_settings().kind('database').target('default').name"
        ),
    ]


def checked(project: Project, *options: str, code: int = 0) -> dict[str, Any]:
    done = project.manage("snapshots", "restore", "before", "--check", "--format", "json", *options)
    assert done.returncode == code, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("engine", ["postgres", "mariadb", "sqlite"])
def test_the_migrations_that_the_restored_database_lacks_are_run(request: pytest.FixtureRequest, engine: str) -> None:
    project = with_shop(project_on(request, engine))
    newer(project, fits=True)
    assert has_note(project)
    project.must("snapshots", "restore", "before", "--migrate", *confirmed(project))
    assert project.manage("migrate", "--check").returncode == 0
    assert has_note(project)
    assert [run["state"] for run in project.runs() if run["kind"] == "restore"] == ["succeeded"]


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
def test_a_migration_that_fails_is_told_and_nothing_is_lost(request: pytest.FixtureRequest, engine: str) -> None:
    project = with_shop(project_on(request, engine))
    newer(project, fits=False)
    done = project.manage("snapshots", "restore", "before", "--migrate", *confirmed(project))
    assert done.returncode == 1, done.stdout + done.stderr
    said = "Everything is restored, but `manage.py migrate --database default` failed: nobody is ready for the column."
    for text in (done.stderr, project.runs()[-1]["error"]):
        assert said in text and "Remove the cause and run it again, or undo the restore." in text
    assert (project.runs()[-1]["kind"], project.runs()[-1]["state"]) == ("restore", "failed")
    # It holds the snapshot, and what was there is kept.
    assert not is_ready(project) and not has_note(project)
    assert project.manage("migrate", "--check").returncode == 1
    project.must("snapshots", "undo", *confirmed(project))
    assert is_ready(project) and has_note(project)
    assert project.manage("migrate", "--check").returncode == 0


def test_migrations_then_and_now_are_told_beforehand(tmp_path: Path) -> None:
    project = with_shop(sqlite_project(tmp_path, aliases=("default",)))
    file = newer(project, fits=True)
    (told,) = [text for text in checked(project)["warnings"] if "older" in text]
    assert told == (
        "The snapshot of 'default' is older than shop.0002_note. After the restore run `manage.py migrate`, or "
        "restore with --migrate."
    )
    project.call("django_snapshots.create_snapshot('newer')")
    file.unlink()
    done = project.must("snapshots", "restore", "newer", "--check", "--format", "json")
    (told,) = [text for text in json.loads(done)["warnings"] if "migrations are applied" in text]
    assert told == (
        "In the snapshot of 'default' migrations are applied that this code does not have: shop.0002_note. Its tables "
        "may be newer than the code: check out the version that made it."
    )


def test_versions_that_differ_are_told_beforehand(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path, aliases=("default",))
    project.call("django_snapshots.create_snapshot('before')")
    assert versions(checked(project)["warnings"]) == []
    snapshot = Catalog(LocalFileSystemBackend(location=project.storage)).get("before")
    packages = tuple(line for line in installed_packages() if not line.lower().startswith("celery=="))
    snapshot = replace(snapshot, django_version="3.2.25", python_version="3.8.1", pip=(*packages, "left-pad==1.0"))
    (project.storage / "before" / "manifest.json").write_bytes(snapshot.to_bytes())
    made_with, _, packages_differ = versions(checked(project)["warnings"])
    assert made_with == (
        f"The snapshot was made with Django 3.2.25; this is {django.get_version()}. If your code needs the former, "
        "install it before you put the restored state to use."
    )
    assert packages_differ == (
        "2 Python packages differ from the snapshot's: celery, left-pad. To have those of that time, install what its "
        "manifest lists as `pip`."
    )


def versions(warnings: Sequence[str]) -> list[str]:
    return [text for text in warnings if "was made with" in text or "packages differ" in text]


def test_a_foreign_key_on_the_journal_stops_a_restore(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path, aliases=("default",))
    project.call("django_snapshots.create_snapshot('before')")
    with_shop(
        project,
        "from django.db import models\n\n\nclass Audit(models.Model):\n"
        "    run = models.ForeignKey('django_snapshots.Run', models.CASCADE)\n"
        "    plain = models.ForeignKey('django_snapshots.Run', models.CASCADE, related_name='+', db_constraint=0)\n",
    )
    report = checked(project, code=5)
    assert report["errors"] == [
        "shop.Audit.run is a foreign key on the journal (django_snapshots.Run), whose rows stay when a database is "
        "restored. Keep the run's id as a plain field instead, or set db_constraint=False."
    ]
    assert report["possible"] is False
    refused = project.manage("snapshots", "restore", "before", *confirmed(project), "--confirm", targets(project)[-1])
    assert refused.returncode == 5 and "shop.Audit.run" in refused.stderr
    assert checked(project, "--artifact", "media")["errors"] == []


def test_a_storage_that_may_be_too_small_for_the_safety_copies_is_told(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path)
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "tests.integration.sqlite_projects.CopyConnector"}
    project.call("django_snapshots.create_snapshot('before', databases=['default', 'other'])")
    assert not [text for text in checked(project)["warnings"] if "may not fit" in text]
    full = "tests.integration.sqlite_projects.StorageThatIsFull"
    project.snapshots["STORAGE"] = {"BACKEND": full, "OPTIONS": {"location": str(project.storage)}}
    (told,) = [text for text in checked(project)["warnings"] if "may not fit" in text]
    (file,) = (project.storage / "before").glob("other.*")
    assert f"1 B are free in {project.storage}" in told
    assert f"takes {file.stat().st_size / 1000:.1f} kB" in told
    # What is kept beside its target needs no copy.
    assert not [text for text in checked(project, "--database", "default")["warnings"] if "may not fit" in text]
