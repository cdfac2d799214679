"""A snapshot that is empty where the one before wasn't is refused, or a loud warning, wherever it is asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from django_snapshots.manifest import Safety, Snapshot
from tests.integration.conftest import entry
from tests.integration.sqlite_projects import query, sqlite_project, without_journal


@pytest.fixture(params=["journal", "none"])
def project(request, tmp_path):
    made = sqlite_project(tmp_path, aliases=("default",))
    if request.param == "none":
        without_journal(made)
    made.must("snapshots", "backup", "before")
    return made


def empty_out(project):
    for (table,) in query(project, "default", "SELECT name FROM sqlite_master WHERE type = 'table'"):
        if table.startswith(("django_snapshots", "sqlite_", "django_migrations", "django_content", "auth_permission")):
            continue
        quoted = table.replace('"', '""')
        query(project, "default", f'DELETE FROM "{quoted}"')


def backup(project, *options, code=0):
    done = project.manage("snapshots", "backup", "--format", "json", *options)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def warnings(result):
    return [text for item in result["artifacts"] for text in item["metadata"].get("warnings", ())]


@pytest.mark.parametrize("what", ["rows", "media"])
def test_what_was_emptied_is_refused_until_somebody_says_so(project, what):
    backup(project, "same")
    if what == "rows":
        empty_out(project)
        words = "The database 'default' has no row now"
    else:
        (project.media / "picture.png").unlink()
        words = "There is no media file now, and there were 1"
    told = backup(project, "after", code=1)
    assert told["type"] == "SnapshotEmptiedError"
    assert words in told["error"] and "--allow-empty" in told["error"]
    assert not any(path.startswith("after") for path in project.stored())
    # Said once, and loud.
    assert any(words in text for text in warnings(backup(project, "meant", "--allow-empty")))
    assert "1 warning" in project.must("snapshots", "list")
    assert words in project.must("snapshots", "info", "meant")
    # It is the one before now.
    assert warnings(backup(project, "again")) == []


def test_the_setting_makes_it_a_warning(project):
    empty_out(project)
    project.snapshots = {**project.snapshots, "EMPTY": "warn"}
    shown = project.must("snapshots", "backup", "after")
    assert "has no row now" in shown
    # Every night, and not the first one only: nobody has said that it is meant.
    assert "has no row now" in project.must("snapshots", "backup", "night-after")
    backup(project, "meant", "--allow-empty")
    assert warnings(backup(project, "last")) == []


def test_a_table_that_lost_nearly_all_is_a_warning(project):
    for number in range(30):
        query(project, "default", "INSERT INTO auth_group (name) VALUES (?)", f"group {number}")
    backup(project, "full")
    query(project, "default", "DELETE FROM auth_group WHERE name <> 'group 1'")
    (text,) = warnings(backup(project, "thin"))
    assert "auth_group (31 to 1)" in text


@pytest.fixture(params=["postgres", "mariadb"])
def on_a_server(request, tmp_path, postgres, make_postgres, make_mariadb):
    """A project whose ``default`` is on a server; its rows are those of the groups."""
    made = sqlite_project(tmp_path, aliases=("default",))
    made.databases = {"default": entry(make_postgres() if request.param == "postgres" else make_mariadb())}
    made.extra_environment["PATH"] = f"{postgres.bin_directory}:{made.environment()['PATH']}"
    made.migrate()
    made.call("from django.contrib.auth.models import Group\nGroup.objects.create(name='order')")
    return made


def empty_out_on_a_server(project):
    project.call(
        "from django.db import connection\n"
        "kept = ('django_snapshots', 'django_migrations', 'django_content', 'auth_permission')\n"
        "with connection.constraint_checks_disabled(), connection.cursor() as cursor:\n"
        "    for table in sorted(connection.introspection.table_names(cursor), reverse=True):\n"
        "        if not table.startswith(kept):\n"
        "            cursor.execute(f'DELETE FROM {connection.ops.quote_name(table)}')"
    )


def test_every_engine_and_every_predecessor(on_a_server):
    """One that failed its drill had what its manifest says; what can't be read, is a safety copy or is of another
    project is no predecessor; and a table that is gone is told."""
    project, databases = on_a_server, ("--artifact", "database")
    backup(project, "before", *databases)
    empty_out_on_a_server(project)
    project.snapshots["PROJECT"] = "theirs"
    assert warnings(backup(project, "of-theirs", *databases)) == []
    del project.snapshots["PROJECT"]
    for name in ("safety", "unreadable"):
        backup(project, name, "--allow-empty", *databases)
    file = project.storage / "safety" / "manifest.json"
    snapshot = Snapshot.from_bytes(file.read_bytes(), "safety")
    safety = Safety(restore="a" * 32, expires_at=snapshot.created_at)
    file.write_bytes(replace(snapshot, safety=safety).to_bytes())
    (project.storage / "unreadable" / "manifest.json").write_bytes(b"{}")
    told = backup(project, "after", *databases, code=1)
    assert told["type"] == "SnapshotEmptiedError" and "has no row now, and had" in told["error"]
    # The newest one has failed its drill.
    project.call("from django.contrib.auth.models import Group\nGroup.objects.create(name='order')")
    backup(project, "bad", *databases)
    project.snapshots["DRILL_CHECKS"] = ["tests.integration.drill_checks.is_false"]
    assert project.manage("snapshots", "drill", "bad").returncode == 4
    empty_out_on_a_server(project)
    assert "had 1 rows" in backup(project, "after", *databases, code=1)["error"]
    assert not any(path.startswith("after") for path in project.stored())
