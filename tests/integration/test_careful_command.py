"""The storage of the snapshots and the media files keep apart."""

from __future__ import annotations

from pathlib import Path

from tests.databases import Maker
from tests.integration.conftest import entry
from tests.projects import Project


def test_a_storage_inside_media_is_refused_by_backup_and_restore(make_sqlite: Maker, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_sqlite())})
    project.migrate()
    (project.media / "picture.png").write_bytes(b"picture")
    project.must("snapshots", "backup", "outside")
    inside = project.media / "snapshots"
    project.storage.rename(inside)
    storage = {"BACKEND": "django_snapshots.storage.LocalFileSystemBackend", "OPTIONS": {"location": str(inside)}}
    project.snapshots["STORAGE"] = storage
    for command in (("backup",), ("restore", "outside", "--no-input", "--confirm", str(project.media))):
        done = project.manage("snapshots", *command)
        assert done.returncode != 0
        assert "lies inside MEDIA_ROOT" in done.stderr
    assert (inside / "outside" / "manifest.json").exists()
    assert (project.media / "picture.png").read_bytes() == b"picture"
    # Databases alone do not meet the media.
    project.must("snapshots", "backup", "--artifact", "database")


def test_what_a_dump_left_out_is_shown(make_sqlite: Maker, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_sqlite())})
    project.migrate()
    (project.media / "away").symlink_to("/etc")
    for arguments in (("backup", "one"), ("info", "one")):
        assert "away" in project.must("snapshots", *arguments)


def test_nothing_from_storage_reaches_the_terminal_as_a_command(make_sqlite: Maker, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_sqlite())})
    project.migrate()
    project.must("snapshots", "backup", "loud", "--artifact", "environment", "--metadata", "mood=\x1b[31mred\x07")
    (project.media / "bell\x07\x1b[2J").symlink_to("/etc")
    project.must("snapshots", "backup", "louder", "--artifact", "media")
    for name in ("loud", "louder"):
        assert not any(character in project.must("snapshots", "info", name) for character in "\x07\x1b")


def test_a_delete_by_command_is_in_the_journal(make_sqlite: Maker, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_sqlite())})
    project.migrate()
    project.must("snapshots", "backup", "gone", "--artifact", "environment")
    project.must("snapshots", "delete", "gone", "--no-input")
    assert [(run["kind"], run["state"], run["name"]) for run in project.runs()] == [
        ("snapshot", "succeeded", "gone"),
        ("delete", "succeeded", "gone"),
    ]
