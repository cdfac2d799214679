"""Drills and deep verifies: what they find, what they leave, what they keep beside the snapshot."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from django_snapshots.catalog import Catalog
from django_snapshots.pipeline.digest import content_tally, stored_tally
from django_snapshots.storage.local import LocalFileSystemBackend
from tests.integration.sqlite_projects import content, path, query, sqlite_project, targets
from tests.projects import Project, wait_until

CHECKS = "tests.integration.drill_checks"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with one snapshot, ``before``; its temporary directories lie where a test can look."""
    made = sqlite_project(tmp_path / "project", TEMPORARY_DIRECTORY=str(_temporary(tmp_path)))
    made.must("snapshots", "backup", "before")
    return made


def _temporary(directory: Path) -> Path:
    made = directory / "temporary"
    made.mkdir(exist_ok=True)
    return made


def temporary(project: Project) -> list[Path]:
    """What lies in the project's directory for temporary files."""
    return list(Path(project.snapshots["TEMPORARY_DIRECTORY"]).iterdir())


def told(project: Project, *arguments: str) -> Any:
    """What a command says to programs."""
    return json.loads(project.must("snapshots", *arguments, "--format", "json"))


def fails(project: Project, *arguments: str, code: int = 4) -> str:
    """What a command that fails so says."""
    done = project.manage("snapshots", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


def reworked(project: Project, filename: str, change: Callable[[bytes], bytes], name: str = "before") -> None:
    """Change the content of a stored file, and make every digest fit, as somebody with the storage in his hands can."""
    storage = LocalFileSystemBackend(project.storage)
    snapshot = Catalog(storage).get(name)
    records = []
    for record in snapshot.artifacts:
        if record.filename == filename:
            file = project.storage / name / filename
            plain = zstd.decompress(file.read_bytes()) if filename.endswith(".zst") else file.read_bytes()
            plain = change(plain)
            stored = zstd.compress(plain) if filename.endswith(".zst") else plain
            file.write_bytes(stored)
            outer, inner = stored_tally(), content_tally()
            assert list(outer(iter([stored]))) and list(inner(iter([plain])))
            record = replace(
                record,
                size=outer.size,
                checksum=outer.digest,
                metadata={**record.metadata, "content_size": inner.size, "content_digest": inner.digest},
            )
        records.append(record)
    manifest = project.storage / name / "manifest.json"
    manifest.write_bytes(replace(snapshot, artifacts=tuple(records)).to_bytes())


def without_rows(table: str) -> Callable[[bytes], bytes]:
    """Takes all rows of *table* out of a SQLite file."""

    def change(plain: bytes) -> bytes:
        database = sqlite3.connect(":memory:")
        database.deserialize(plain)
        database.execute(f"DELETE FROM {table}")
        database.commit()
        return database.serialize()

    return change


def test_a_good_snapshot_passes_and_nothing_is_touched_or_left(project: Project) -> None:
    query(project, "default", "INSERT INTO auth_group (name) VALUES ('since then')")
    before = untouched(project)
    report = told(project, "drill")
    assert report["name"] == "before" and report["level"] == 4 and report["kept"]
    assert [item["subject"] for item in report["databases"]] == ["default", "other"]
    assert all(item["rows_compared"] and item["rows"] > 0 and item["seconds"] >= 0 for item in report["databases"])
    assert {item["type"] for item in report["examined"]} == {"media", "environment"}
    assert untouched(project) == before
    assert temporary(project) == []


def untouched(project: Project) -> dict[str, object]:
    """All that a drill has nothing to do with: every file but the journal's database and the drill's result, to the
    byte; of that database every definition, and the rows of each table but the journal's own."""
    journal = path(project, "default")
    mine = (journal, project.storage / "before" / "drill.json")
    found: dict[str, object] = {
        str(file): file.read_bytes() for file in project.directory.rglob("*") if file.is_file() and file not in mine
    }
    for kind, name, sql in query(project, "default", "SELECT type, name, sql FROM sqlite_master"):
        found[f"{kind} {name}"] = sql
        if kind == "table" and not name.startswith("django_snapshots_"):
            # The numbers that the journal's tables have given out are the journal's.
            where = " WHERE name NOT LIKE 'django_snapshots_%'" if name == "sqlite_sequence" else ""
            found[f"rows of {name}"] = query(project, "default", f'SELECT * FROM "{name}"{where}')
    return found


def test_a_drill_finds_rows_that_were_taken_by_hand_with_digests_made_to_fit(project: Project) -> None:
    reworked(project, "other.sqlite3.zst", without_rows("auth_group"))
    project.must("snapshots", "verify", "before")
    assert "auth_group: 0 instead of 1" in fails(project, "drill", "before")
    assert "auth_group: 0 instead of 1" in fails(project, "verify", "before", "--level", "3")
    run = project.runs()[-2]
    assert (run["kind"], run["state"]) == ("drill", "failed")
    assert temporary(project) == []


def test_a_project_s_own_checks_see_the_restored_rows_by_the_orm(tmp_path: Path, project: Project) -> None:
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.has_its_group", f"{CHECKS}.is_true"]
    report = told(project, "drill")
    assert [item["checks"] for item in report["databases"]] == [2, 2]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("raises", "ValueError: there is no order"),
        ("is_false", "False"),
        ("says", "3 orders have no customer"),
        ("lists", "two"),
        ("returns_nonsense", "it returned int"),
        ("exits", "SystemExit: there is no order"),
    ],
)
def test_a_check_that_fails_fails_the_drill(project: Project, check: str, words: str) -> None:
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.{check}"]
    error = fails(project, "drill")
    assert f"the check {CHECKS}.{check} says: " in error and words in error
    assert temporary(project) == []


def test_what_is_no_check_is_refused_by_the_settings(project: Project) -> None:
    for wrong in (["tests.nowhere.check"], "tests.integration.drill_checks.says", [f"{CHECKS}.NOT_A_FUNCTION"]):
        project.snapshots["DRILL_CHECKS"] = wrong
        assert "DRILL_CHECKS" in fails(project, "drill", code=2)
    project.snapshots["DRILL_CHECKS"] = None
    project.snapshots["DRILL_DATABASES"] = {"default": "nowhere"}
    assert "DRILL_DATABASES" in fails(project, "drill", code=2)


def test_the_scratch_database_is_made_through_another_alias_whose_own_needn_t_exist(project: Project) -> None:
    nowhere = project.directory / "nowhere" / "drill.sqlite3"
    project.databases["scratch"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(nowhere)}
    project.snapshots["DRILL_DATABASES"] = {"other": "scratch", "gone": "scratch"}
    report = told(project, "drill", "before")
    assert [item["into"] for item in report["databases"]] == ["default", "scratch"]
    assert not nowhere.parent.exists()


def test_files_that_rows_point_at_and_the_media_lack_are_told(project: Project) -> None:
    (project.media / "files").mkdir()
    (project.media / "files" / "there.txt").write_text("there")
    project.call(
        "from tests.project.models import EveryColumn\n"
        "for name in ('files/there.txt', 'files/lost.txt', '', 'files/./there.txt'):\n"
        "    EveryColumn.objects.create(file=name)\n"
    )
    project.must("snapshots", "backup", "with-files")
    database = told(project, "drill", "with-files")["databases"][0]
    assert (database["files"], database["files_missing"]) == (3, 1)
    assert "files/lost.txt" in " ".join(database["notes"]) and "there.txt" not in " ".join(database["notes"])


def test_migrations_that_differ_are_told_and_those_of_the_manifest_compared(project: Project) -> None:
    query(project, "default", "DELETE FROM django_migrations WHERE app='project'")
    query(
        project, "default", "INSERT INTO django_migrations (app, name, applied) VALUES ('old', '0001_x', '2020-01-01')"
    )
    project.must("snapshots", "backup", "older")
    notes = " ".join(told(project, "drill", "older")["databases"][0]["notes"])
    assert "project.0001" in notes and "old.0001_x" in notes

    def other_name(plain: bytes) -> bytes:
        return plain.replace(b"0001_x", b"0001_y")

    reworked(project, "default.sqlite3.zst", other_name, "older")
    error = fails(project, "drill", "older")
    assert "old.0001_x" in error and "old.0001_y" in error


def test_the_result_is_kept_beside_and_shown(project: Project) -> None:
    project.must("snapshots", "verify", "--level", "1")
    project.must("snapshots", "drill")
    (entry,) = told(project, "list")
    verified, drilled = entry["proof"]["verify"], entry["proof"]["drill"]
    assert (verified["level"], verified["ok"]) == (1, True)
    assert (drilled["level"], drilled["ok"], set(drilled["databases"])) == (4, True, {"default", "other"})
    assert drilled["run"] == str(project.runs()[-1]["id"])
    assert told(project, "info")["proof"] == entry["proof"]
    for command in ("list", "info"):
        assert "drilled: 2" in project.must("snapshots", command)
    assert {"verify.json", "drill.json"} <= {Path(item).name for item in project.stored()}
    project.must("snapshots", "delete", "before", "--no-input")
    assert project.stored() == []


def test_a_damaged_result_is_unknown_and_hides_nothing(project: Project) -> None:
    project.must("snapshots", "drill")
    file = project.storage / "before" / "drill.json"
    whole = file.read_bytes()
    for damage in (b"", whole[:-20], whole.replace(b"true", b"null"), b"[" * 100_000, b"x" * 2_000_000):
        file.write_bytes(damage)
        (entry,) = told(project, "list")
        assert "unreadable" in entry["proof"]["drill"] and entry["name"] == "before"
        assert "drilled: unknown" in project.must("snapshots", "list")
    project.must("snapshots", "drill")
    assert told(project, "info")["proof"]["drill"]["ok"]


def test_a_storage_that_can_t_be_written_to_keeps_no_result_and_the_drill_passes(project: Project) -> None:
    if os.geteuid() == 0:
        (project.storage / "before" / "drill.json").mkdir()
    else:
        (project.storage / "before").chmod(0o500)
    try:
        report = told(project, "drill")
    finally:
        (project.storage / "before").chmod(0o700)
    assert not report["kept"] and report["kept_not"]
    assert project.runs()[-1]["state"] == "succeeded"


def test_retention_does_not_count_what_failed_its_drill_by_whoever_drilled_it(project: Project) -> None:
    project.must("snapshots", "backup", "after")
    reworked(project, "default.sqlite3.zst", without_rows("auth_group"), "after")
    fails(project, "drill", "after")
    # Another host's journal knows nothing of it; the storage does.
    query(project, "default", "DELETE FROM django_snapshots_step")
    query(project, "default", "DELETE FROM django_snapshots_run WHERE kind='drill'")
    plan = told(project, "prune", "--keep-last", "1", "--dry-run")
    assert plan["deleted"] == []
    reasons = {item["name"]: " ".join(item["reasons"]) for item in plan["kept"]}
    assert reasons["after"].startswith("failed its drill") and "last 1 of 1" in reasons["before"]
    # A verify that looks less deep proves nothing against it.
    project.must("snapshots", "verify", "after")
    assert told(project, "prune", "--keep-last", "1", "--dry-run")["deleted"] == []


def test_a_drill_that_passes_clears_what_an_earlier_one_said(project: Project) -> None:
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.is_false"]
    project.must("snapshots", "backup", "after")
    fails(project, "drill", "after")
    assert told(project, "prune", "--keep-last", "1", "--dry-run")["deleted"] == []
    project.snapshots["DRILL_CHECKS"] = []
    project.must("snapshots", "drill", "after")
    plan = told(project, "prune", "--keep-last", "1", "--dry-run")
    assert [item["name"] for item in plan["deleted"]] == ["before"]


def test_a_drill_that_could_not_be_made_says_nothing_of_the_snapshot(project: Project) -> None:
    """It has failed, loudly; what was proved before stands, and retention counts the snapshot."""
    project.must("snapshots", "backup", "after")
    project.must("snapshots", "drill", "after")
    proved = told(project, "info", "after")["proof"]["drill"]
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.is_full"]
    assert "disk is full" in fails(project, "drill", "after", code=1)
    assert project.runs()[-1]["state"] == "failed"
    assert told(project, "info", "after")["proof"]["drill"] == proved
    assert temporary(project) == []
    assert [item["name"] for item in told(project, "prune", "--keep-last", "1", "--dry-run")["deleted"]] == ["before"]
    # Nor is damage that was found before lost by it.
    reworked(project, "media.tar.zst", lambda plain: plain.replace(b"picture.png", b"../ture.png"), "after")
    error = fails(project, "drill", "after")
    assert "media.tar.zst" in error and "was not proved" in error and "disk is full" in error
    assert not told(project, "info", "after")["proof"]["drill"]["ok"]


def test_damage_that_was_found_is_not_forgotten_by_a_look_that_is_less_deep(project: Project) -> None:
    project.must("snapshots", "backup", "after")
    file = project.storage / "after" / "other.sqlite3.zst"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    fails(project, "verify", "after")
    report = told(project, "verify", "after", "--level", "1")
    assert not report["kept"] and "stays" in report["kept_not"]
    # Another host's journal knows nothing of it; the storage does.
    query(project, "default", "DELETE FROM django_snapshots_step")
    query(project, "default", "DELETE FROM django_snapshots_run WHERE kind='verify'")
    assert not told(project, "info", "after")["proof"]["verify"]["ok"]
    assert told(project, "prune", "--keep-last", "1", "--dry-run")["deleted"] == []
    note = project.storage / "after" / "verify.json"
    note.write_bytes(note.read_bytes()[:-9])  # torn, it may have been damage
    assert not told(project, "verify", "after", "--level", "1")["kept"]
    file.write_bytes(whole)
    assert told(project, "verify", "after")["kept"]
    assert told(project, "info", "after")["proof"]["verify"]["ok"]


def test_an_alias_that_is_left_out_of_snapshots_is_drilled_where_it_is_said(project: Project) -> None:
    """The sweep looks beside no other alias for what killed drills have left."""
    project.snapshots["DATABASES"] = ["default"]
    report = told(project, "drill", "before")
    assert [item["subject"] for item in report["databases"]] == ["default"]
    assert "other was not restored" in " ".join(report["notes"])
    project.snapshots["DRILL_DATABASES"] = {"other": "other"}
    assert [item["subject"] for item in told(project, "drill", "before")["databases"]] == ["default", "other"]


def test_nothing_of_one_scratch_database_is_remembered_in_the_next(project: Project) -> None:
    """Two drills in one process, of snapshots whose content types have other numbers."""
    query(project, "default", "UPDATE django_content_type SET id = id + 1000 WHERE model='group'")
    project.must("snapshots", "backup", "after")
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.knows_its_types"]
    told_both = project.call(
        "from django.db import connections\n"
        "names = [django_snapshots.drill_snapshot(name)['name'] for name in ('before', 'after')]\n"
        "answer = names + [hasattr(connections._connections, 'drill_default')]"
    )
    assert told_both == ["before", "after", False]


def test_migrations_that_the_code_has_squashed_are_told(project: Project) -> None:
    """A snapshot that has some of those that one of the code replaces, and not all: told, and no fault of its own."""
    app = project.directory / "squashed"
    (app / "migrations").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "migrations/__init__.py": "",
        "migrations/0003_all.py": (
            "from django.db import migrations\n"
            "class Migration(migrations.Migration):\n"
            "    replaces = [('squashed', '0001_one'), ('squashed', '0002_two')]\n"
            "    dependencies = []\n    operations = []\n"
        ),
        "migrations/0004_more.py": (
            "from django.db import migrations\n"
            "class Migration(migrations.Migration):\n"
            "    dependencies = [('squashed', '0002_two')]\n    operations = []\n"
        ),
    }.items():
        (app / name).write_text(text)
    query(
        project,
        "default",
        "INSERT INTO django_migrations (app, name, applied) VALUES ('squashed', '0001_one', '2020-01-01')",
    )
    project.must("snapshots", "backup", "half")
    told_half = project.call(
        f"import sys\nsys.path.insert(0, {str(project.directory)!r})\n"
        "from django.conf import settings\n"
        "from django.apps import apps\n"
        "apps.set_installed_apps([*settings.INSTALLED_APPS, 'squashed'])\n"
        "answer = django_snapshots.drill_snapshot('half')"
    )
    assert "could not be compared" in " ".join(told_half["databases"][0]["notes"])


def test_an_archive_is_drilled_and_keeps_its_result_in_the_directory_of_its_name(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path / "project", FORMAT="archive")
    project.must("snapshots", "backup", "one")
    project.must("snapshots", "drill")
    assert project.stored() == ["one.tar", "one/drill.json"]
    assert told(project, "list")[0]["proof"]["drill"]["ok"]
    project.must("snapshots", "delete", "one", "--no-input")
    assert project.stored() == []


def test_a_drill_needs_neither_journal_nor_database(tmp_path: Path, project: Project) -> None:
    for alias in project.databases:
        path(project, alias).unlink()
    report = told(project, "drill")
    assert [item["rows_compared"] for item in report["databases"]] == [True, True]
    # Whoever looks for the journal makes Django make its file.
    assert not path(project, "other").exists() and path(project, "default").stat().st_size == 0


def test_rows_by_models_can_t_be_drilled_and_are_read(project: Project) -> None:
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "dumpdata"}
    project.must("snapshots", "backup", "mixed")
    report = told(project, "drill", "mixed")
    assert [item["subject"] for item in report["databases"]] == ["default"]
    assert "other was not restored" in " ".join(report["notes"])
    assert any(item["subject"] == "other" and item["found"]["rows"] > 0 for item in report["examined"])
    project.must("snapshots", "backup", "models-only", "--database", "other")
    assert "No database of 'models-only' can be drilled" in fails(project, "drill", "models-only", code=5)


def test_a_verify_of_level_3_says_what_it_has_found_and_where_only_digests_prove(project: Project) -> None:
    report = told(project, "verify", "--level", "3")
    found = {item["filename"]: item["found"] for item in report["examined"]}
    assert found["default.sqlite3.zst"]["rows"] > 0 and found["media.tar.zst"]["files"] == 1
    del project.databases["other"]
    report = told(project, "verify", "--level", "3")
    assert {item["filename"]: item["found"] for item in report["examined"]}["other.sqlite3.zst"].startswith("digests")
    assert "drill" in fails(project, "verify", "--level", "4", code=2)


def test_level_3_finds_content_that_is_not_what_was_dumped(project: Project) -> None:
    reworked(project, "media.tar.zst", lambda plain: plain.replace(b"picture.png", b"../ture.png"))
    assert "media.tar.zst" in fails(project, "verify", "--level", "3")
    assert "media.tar.zst" in fails(project, "drill")
    reworked(project, "requirements.txt", lambda plain: plain + b"one-more==1\n")
    assert "requirements.txt names" in fails(project, "verify", "--level", "3")


def test_a_drill_that_is_killed_leaves_nothing_once_it_is_swept(project: Project) -> None:
    begun = project.directory / "begun"
    project.extra_environment["DRILL_BEGUN"] = str(begun)
    project.snapshots |= {"DRILL_CHECKS": [f"{CHECKS}.waits"], "LEASE": 2, "SWEEP_GRACE": 0}
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "snapshots", "drill"],
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(begun.exists, "the drill to look at its scratch database")
        assert temporary(project)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert temporary(project)
    wait_until(lambda: not _is_live(project), "the sweep to end the run")
    assert temporary(project) == []
    assert project.runs()[-1]["state"] == "failed"


DEATHS = (
    "django_snapshots.drill.journey:Drill._media_kind:before",
    "django_snapshots.drill.journey:look_through:after",
    "django_snapshots.artifacts.database:DatabaseArtifact.prepare:before",
    "django_snapshots.connectors.sqlite:_spool:after",
    "django_snapshots.connectors.sqlite:_checked:after",
    "django_snapshots.drill.journey:Drill._look:after",
    "django_snapshots.connectors.sqlite:_PreparedDatabase.discard:before",
    "django_snapshots.connectors.sqlite:_PreparedDatabase.discard:after",
    "django_snapshots.catalog.notes:write_note:before",
    "django_snapshots.catalog.notes:write_note:after",
)


@pytest.mark.parametrize("where", DEATHS)
def test_a_drill_that_dies_anywhere_leaves_nothing_once_it_is_swept(project: Project, where: str) -> None:
    project.snapshots |= {"LEASE": 2, "SWEEP_GRACE": 0}
    project.extra_environment |= {"DJANGO_SETTINGS_MODULE": "tests.integration.dying_settings", "DIES_AT": where}
    assert project.manage("snapshots", "drill").returncode == -signal.SIGKILL
    del project.extra_environment["DIES_AT"]
    wait_until(lambda: not _is_live(project), "the sweep to end the run")
    assert temporary(project) == []
    assert project.runs()[-1]["state"] == "failed"
    known = {"before/manifest.json", "before/drill.json", "before/media.tar.zst", "before/requirements.txt"}
    assert {item for item in project.stored() if ".sqlite3" not in item} <= known


def _is_live(project: Project) -> bool:
    project.must("snapshots", "sweep", "--collect")
    return bool(project.runs()[-1]["state"] == "running")


def test_the_scratch_alias_is_seen_by_nobody_else(project: Project) -> None:
    project.snapshots["DRILL_CHECKS"] = [f"{CHECKS}.is_hidden"]
    project.must("snapshots", "drill")


def test_a_restore_goes_on_as_before(project: Project) -> None:
    query(project, "default", "DELETE FROM auth_group")
    confirmed = [item for name in targets(project) for item in ("--confirm", name)]
    project.must("snapshots", "restore", "before", "--no-input", *confirmed)
    assert content(project) == ["order in default"]
