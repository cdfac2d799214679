"""Archives through real workers and the command, on three engines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.integration.sqlite_projects import BROKEN_CONNECTOR, content, sqlite_project, targets, write
from tests.integration.test_tasks import EMPTY, FILL, FINGERPRINT, confirmations
from tests.projects import Project, worker_node

BASIC = {
    "BACKEND": "tests.integration.test_archive.basic_storage",
    "OPTIONS": {},
}


def test_three_engines_through_a_worker_and_back(three_engines: Project, tmp_path: Path) -> None:
    project = three_engines
    project.snapshots["FORMAT"] = "archive"
    (project.media / "picture.png").write_bytes(b"\x89PNG" * 10_000)
    project.call(FILL)
    before = project.call(FINGERPRINT)
    worker = worker_node(project, concurrency=2)
    try:
        worker.ready()
        taken = project.call("answer = snapshot.delay('nightly').get(timeout=120)")
        assert project.stored() == ["nightly.tar"]
        names = [item["filename"] for item in taken["artifacts"]]
        assert names == [
            "default.pgdump.zst",
            "legacy.sql.zst",
            "local.sqlite3.zst",
            "media.tar.zst",
            "requirements.txt",
        ]
        project.call(EMPTY)
        (project.media / "picture.png").unlink()
        report = project.call(f"answer = restore.delay('nightly', confirm={confirmations(project)!r}).get(timeout=120)")
        assert len(report["restored"]) == 5
        assert project.call("answer = verify.delay('nightly').get(timeout=60)")["level"] == 2
    finally:
        worker.teardown()
    assert project.call(FINGERPRINT) == before
    assert (project.media / "picture.png").read_bytes() == b"\x89PNG" * 10_000
    # By hand, with nothing but public tools.
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", project.storage / "nightly.tar", "-C", unpacked], check=True)
    for artifact in taken["artifacts"]:
        printed = subprocess.run(["sha256sum", unpacked / "nightly" / artifact["filename"]], capture_output=True)
        assert artifact["checksum"] == f"sha256:{printed.stdout.decode().split()[0]}"
    listing = subprocess.run(
        f"zstd -dc {unpacked}/nightly/default.pgdump.zst | pg_restore -l",
        shell=True,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TABLE DATA public project_tag" in listing.stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return sqlite_project(tmp_path, FORMAT="archive")


def test_the_commands_work_on_both_formats_side_by_side(project: Project) -> None:
    project.must("snapshots", "backup", "one-file")
    project.snapshots["FORMAT"] = "directory"
    project.must("snapshots", "backup", "many-files")
    listed = json.loads(project.must("snapshots", "list", "--format", "json"))
    assert [entry["name"] for entry in listed] == ["many-files", "one-file"]
    assert json.loads(project.must("snapshots", "info", "one-file", "--format", "json"))["name"] == "one-file"
    assert "level 1" in project.must("snapshots", "verify", "one-file", "--level", "1")
    refused = project.manage("snapshots", "backup", "one-file")
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    for alias in project.databases:
        write(project, alias, "something else")
    confirmed = [word for target in targets(project) for word in ("--confirm", target)]
    project.must("snapshots", "restore", "one-file", "--no-input", *confirmed)
    assert content(project) == ["order in default"]
    project.must("snapshots", "delete", "one-file", "--no-input")
    assert not [path for path in project.stored() if not path.startswith("many-files/")]
    project.must("snapshots", "verify", "many-files")


def test_one_changed_byte_stops_a_restore(project: Project) -> None:
    project.must("snapshots", "backup", "before")
    archive = project.storage / "before.tar"
    whole = archive.read_bytes()
    position = whole.index(b"\x28\xb5\x2f\xfd") + 40
    archive.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    write(project, "default", "something else")
    confirmed = [word for target in targets(project) for word in ("--confirm", target)]
    refused = project.manage("snapshots", "restore", "before", "--no-input", *confirmed)
    assert refused.returncode == 4
    assert "SHA-256" in refused.stderr
    assert content(project) == ["something else"]


def test_a_dump_that_fails_leaves_nothing(project: Project) -> None:
    project.snapshots["DATABASE_CONNECTORS"] = {"other": BROKEN_CONNECTOR}
    failed = project.manage("snapshots", "backup", "before")
    assert failed.returncode == 1
    assert project.stored() == []


def basic_storage() -> object:
    """A storage of the basic tier, in the project's own directory."""
    from django.conf import settings
    from django.core.files.storage import FileSystemStorage

    from django_snapshots import DjangoStorageBackend

    return DjangoStorageBackend(FileSystemStorage(location=settings.BASE / "snapshots"))


def test_a_storage_of_the_basic_tier_is_refused_before_any_dump_begins(project: Project) -> None:
    # A dump that began would fail with another error.
    project.snapshots["DATABASE_CONNECTORS"] = dict.fromkeys(
        project.databases, "tests.integration.sqlite_projects.BrokenConnector"
    )
    project.snapshots["STORAGE"] = BASIC
    answer = project.call("django_snapshots.create_snapshot('before')")
    assert answer["type"] == "SnapshotStorageCapabilityError"
    assert 'SNAPSHOTS["FORMAT"] "archive"' in answer["error"]
    assert "advanced" in answer["error"]
    assert project.steps() == []
    assert project.stored() == []
    checked = project.manage("check", "--tag", "snapshots")
    assert checked.returncode == 1
    assert "snapshots.E002" in checked.stderr
