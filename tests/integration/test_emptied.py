"""A snapshot that is empty where the one before wasn't is refused, or a loud warning, wherever it is asked for."""

from __future__ import annotations

import json

import pytest

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


def test_a_table_that_lost_nearly_all_is_a_warning(project):
    for number in range(30):
        query(project, "default", "INSERT INTO auth_group (name) VALUES (?)", f"group {number}")
    backup(project, "full")
    query(project, "default", "DELETE FROM auth_group WHERE name <> 'group 1'")
    (text,) = warnings(backup(project, "thin"))
    assert "auth_group (31 to 1)" in text
