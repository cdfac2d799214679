"""Safety copies beside other snapshots: listed as such, never the latest, never counted; and one that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.sqlite_projects import content, sqlite_project, targets, write
from tests.projects import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A snapshot ``before`` of a database whose connector keeps nothing; it was changed, and restored since."""
    made = sqlite_project(tmp_path)
    made.snapshots["DATABASE_CONNECTORS"] = {"other": "tests.integration.sqlite_projects.CopyConnector"}
    made.call("django_snapshots.create_snapshot('before', databases=['other'])")
    write(made, "other", "changed")
    confirmed = ("--confirm", targets(made, "other")[0])
    made.must("snapshots", "restore", "before", "--database", "other", "--no-input", *confirmed)
    assert content(made, "other") == ["order in other"]
    return made


def safety_copy(project: Project) -> Path:
    """The directory of the only one."""
    (found,) = project.storage.glob("safety-*")
    return found


def test_a_safety_copy_is_listed_as_such_and_is_never_the_latest(project: Project) -> None:
    name = safety_copy(project).name
    run = project.runs()[-1]["id"].replace("-", "")
    (line,) = [line for line in project.must("snapshots", "list").splitlines() if name in line]
    assert f"(safety copy of the restore {run[:8]}, until " in line
    entries = {item["name"]: item for item in json.loads(project.must("snapshots", "list", "--format", "json"))}
    assert entries[name]["safety"]["restore"] == run
    assert "safety" not in entries["before"]
    assert json.loads(project.must("snapshots", "info", "--format", "json"))["name"] == "before"
    assert f"safety copy of restore: {run}" in project.must("snapshots", "info", name)


def test_retention_never_counts_and_never_deletes_a_safety_copy(project: Project) -> None:
    """It is newer than ``before``, and of the same artifacts and aliases."""
    name = safety_copy(project).name
    report = json.loads(project.must("snapshots", "prune", "--keep-last", "1", "--dry-run", "--format", "json"))
    assert report["deleted"] == []
    kept = {item["name"]: " ".join(item["reasons"]) for item in report["kept"]}
    assert "last 1 of 1" in kept["before"]
    assert kept[name].startswith("the safety copy of a restore, until ")
    project.call("django_snapshots.create_snapshot('later', databases=['other'])")
    report = json.loads(project.must("snapshots", "prune", "--keep-last", "1", "--no-input", "--format", "json"))
    assert [item["name"] for item in report["deleted"]] == ["before"]
    assert safety_copy(project).name == name


def test_no_undo_from_a_safety_copy_that_is_damaged(project: Project) -> None:
    write(project, "other", "after the restore")
    (file,) = safety_copy(project).glob("other.*")
    stored = bytearray(file.read_bytes())
    stored[len(stored) // 2] ^= 1
    file.write_bytes(stored)
    before = project.stored()
    done = project.manage("snapshots", "undo", "--no-input", "--confirm", targets(project, "other")[0])
    assert done.returncode == 4, done.stdout + done.stderr
    assert file.name in done.stderr and "SHA-256 does not match" in done.stderr
    assert content(project, "other") == ["after the restore"]
    assert project.runs()[-1]["state"] == "failed"
    assert project.stored() == before
