"""Undo: what a restore has replaced comes back, by code, command and worker; and so does what that replaced."""

from __future__ import annotations

import json

import pytest

from tests.integration.sqlite_projects import content, path, query, sqlite_project, targets, without_journal, write
from tests.projects import WorkerProcess, wait_until


@pytest.fixture
def project(tmp_path):
    """With a snapshot ``before`` in it, changed since, and restored."""
    made = sqlite_project(tmp_path)
    assert made.call("answer = django_snapshots.create_snapshot('before').name") == "before"
    change(made, "changed")
    return made


def change(project, text):
    for alias in project.databases:
        write(project, alias, text)
    (project.media / "picture.png").write_text(text)


def holds(project, text, picture=None):
    assert content(project, "default") == content(project, "other") == [text]
    if picture:
        assert (project.media / "picture.png").read_text() == picture


def restored(project, **arguments):
    arguments = {"confirm": targets(project), **arguments}
    report = project.call(f"answer = django_snapshots.restore_snapshot('before', **{arguments!r})")
    assert "restored" in report, report
    return report


def undone(project, run=None, **arguments):
    arguments = {"confirm": targets(project), **arguments}
    report = project.call(f"answer = django_snapshots.undo_restore({run!r}, **{arguments!r})")
    assert "undone" in report, report
    return report


def test_an_undo_brings_everything_back_and_can_be_undone(project):
    report = restored(project)
    assert content(project) == ["order in default"]
    first = undone(project, report["undo"])
    assert first["undone"] == report["undo"]
    holds(project, "changed", "changed")
    second = undone(project, first["undo"])
    assert content(project) == ["order in default"]
    assert (project.media / "picture.png").read_bytes() == b"\x89PNG picture"
    undone(project, second["undo"])
    holds(project, "changed", "changed")


def test_the_latest_is_meant_if_none_is_named(project):
    restored(project)
    change(project, "again")
    last = restored(project)
    assert undone(project)["undone"] == last["undo"]
    holds(project, "again", "again")


def test_every_target_of_an_undo_needs_its_name(project):
    restored(project)
    answer = project.call("answer = django_snapshots.undo_restore()")
    assert answer["type"] == "SnapshotConfirmationError"
    for name in targets(project):
        assert name in answer["error"]
    assert content(project) == ["order in default"]


def test_what_was_written_after_the_restore_is_kept_by_the_undo(project):
    restored(project)
    change(project, "after the restore")
    report = undone(project)
    holds(project, "changed", "changed")
    undone(project, report["undo"])
    holds(project, "after the restore", "after the restore")


def test_only_what_was_restored_is_undone(project):
    report = restored(project, databases=["other"])
    change(project, "later")
    undone(project, report["undo"])
    assert content(project, "other") == ["changed"]
    assert content(project, "default") == ["later"]


def test_what_is_kept_of_a_database_with_two_aliases_is_one_thing(tmp_path):
    made = sqlite_project(tmp_path)
    made.databases["other"]["NAME"] = made.databases["default"]["NAME"]
    made.call("answer = django_snapshots.create_snapshot('before', databases=['default']).name")
    write(made, "default", "changed")
    for alias in ("other", "default"):
        restored(made, databases=["default"], into={"default": alias})
        assert [item["subject"] for item in kept(made)][:1] == [alias]
        undone(made)
        assert content(made) == ["changed"]


def test_there_is_nothing_to_undo(project):
    answer = project.call("answer = django_snapshots.undo_restore()")
    assert answer["type"] == "SnapshotNotFoundError"
    assert "SAFETY_KEEP" in answer["error"]
    restored(project)
    answer = project.call("answer = django_snapshots.undo_restore('123456')")
    assert answer["type"] == "SnapshotNotFoundError"


def test_half_of_a_restore_is_not_undone_without_a_word(project):
    run = restored(project)["undo"]
    (kept,) = [
        directory
        for directory in project.media.parent.glob(".django-snapshots-*.kept")
        if (run in directory.name and (directory / "new").exists()) or (directory / "old").exists()
    ][:1]
    away = kept.with_name("away")
    kept.rename(away)
    answer = project.call(f"answer = django_snapshots.undo_restore({run!r}, confirm={targets(project)!r})")
    assert answer["type"] == "SnapshotNotFoundError"
    assert str(project.media) in answer["error"]
    assert content(project) == ["order in default"]
    away.rename(kept)
    undone(project, run)
    holds(project, "changed", "changed")


def test_a_part_of_a_restore_can_be_undone_on_purpose(project):
    run = restored(project)["undo"]
    report = undone(project, run, databases=["other"])
    assert content(project, "other") == ["changed"]
    assert content(project) == ["order in default"]
    answer = project.call(f"answer = django_snapshots.undo_restore({run!r}, confirm={targets(project)!r})")
    assert answer["type"] == "SnapshotNotFoundError"
    assert f"undo {run} --database default --artifact database --artifact media`" in answer["error"]
    for part, word in (({"databases": ["other"]}, "'other'"), ({"databases": ["default"], "artifacts": ["media"]}, "")):
        answer = project.call(f"answer = django_snapshots.undo_restore({run!r}, **{part!r})")
        assert answer["type"] in ("SnapshotNotFoundError", "SnapshotPreflightError")
        assert word in answer["error"]
    assert content(project) == ["order in default"]
    names = [word for name in targets(project) for word in ("--confirm", name)]
    options = ["--database", "default", "--artifact", "database", "--artifact", "media"]
    project.must("snapshots", "undo", run, *options, "--no-input", *names)
    holds(project, "changed", "changed")
    undone(project, report["undo"])
    assert content(project, "other") == ["order in other"]


def test_what_is_kept_on_a_disk_is_undone_while_the_storage_is_away(project):
    run = restored(project)["undo"]
    away = {"BACKEND": "tests.integration.sqlite_projects.StorageThatIsAway", "OPTIONS": {"location": "/nowhere"}}
    project.snapshots["STORAGE"] = away
    listed = project.manage("snapshots", "undo", "--list")
    assert run in listed.stdout
    assert "the safety copies in the storage (The storage does not answer.)" in listed.stderr
    answer = project.call(f"answer = django_snapshots.undo_restore(confirm={targets(project)!r})")
    assert answer["type"] == "SnapshotPreflightError"
    assert "Name the restore" in answer["error"]
    undone(project, run)
    holds(project, "changed", "changed")


def test_a_kind_that_can_not_be_asked_stops_only_an_undo_that_is_of_it(project):
    run = restored(project)["undo"]
    project.snapshots["ARTIFACTS"] = ["database", "media", "tests.integration.sqlite_projects.SilentKind"]
    for arguments in ("artifacts=['silent']", f"{run!r}, artifacts=['silent']"):
        answer = project.call(f"answer = django_snapshots.undo_restore({arguments})")
        assert "the silent one does not answer" in answer["error"], answer
    undone(project, run, artifacts=["media"])
    assert (project.media / "picture.png").read_text() == "changed"
    undone(project, databases=["other"])
    assert content(project, "other") == ["changed"]


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
def test_a_server_that_is_away_may_have_kept_more(project, engine):
    """So which restore was the latest can't be told; one that is named is undone if the journal knows all of it."""
    names, run = targets(project), restored(project)["undo"]
    entry = {"ENGINE": f"django.db.backends.{engine}", "HOST": "127.0.0.1", "PORT": 1, "NAME": "shop", "USER": "shop"}
    project.databases["away"] = entry
    for arguments in ("", "databases=['away'], "):
        answer = project.call(f"answer = django_snapshots.undo_restore({arguments}confirm={names!r})")
        assert answer["type"] == "SnapshotPreflightError", answer
        assert "Which restore was the latest can't be told now, because database away (" in answer["error"]
    listed = project.manage("snapshots", "undo", "--list")
    assert run in listed.stdout
    assert "database away (" in listed.stderr
    undone(project, run, confirm=names)
    del project.databases["away"]
    holds(project, "changed", "changed")


def test_without_a_journal_an_undo_that_may_be_half_of_one_is_refused(project):
    run = restored(project)["undo"]
    without_journal(project)
    project.snapshots["ARTIFACTS"] = ["database", "media", "tests.integration.sqlite_projects.SilentKind"]
    answer = project.call(f"answer = django_snapshots.undo_restore({run!r}, confirm={targets(project)!r})")
    assert answer["type"] == "SnapshotNotFoundError", answer
    assert "silent silent (the silent one does not answer)" in answer["error"]
    assert "--database default --database other --artifact database --artifact media" in answer["error"]
    undone(project, run, artifacts=["database", "media"])
    holds(project, "changed", "changed")


def test_an_empty_target_leaves_nothing_to_undo(project):
    path(project, "other").unlink()
    report = restored(project, databases=["other"])
    assert report["safety"] == []


def test_the_command_lists_asks_and_undoes(project):
    run = restored(project)["undo"]
    listed = json.loads(project.manage("snapshots", "undo", "--list", "--format", "json").stdout)
    assert {item["run"] for item in listed} == {run}
    assert {item["subject"] for item in listed} == {"default", "other", "media"}
    refused = project.manage("snapshots", "undo", run[:8], "--no-input")
    assert refused.returncode == 6
    confirmed = [word for name in targets(project) for word in ("--confirm", name)]
    shown = project.manage("snapshots", "undo", run[:8], "--no-input", *confirmed)
    assert run in shown.stdout
    holds(project, "changed", "changed")


def test_what_is_kept_goes_after_its_time_and_after_two_generations(project):
    project.snapshots["SAFETY_KEEP"] = 0
    restored(project, databases=["other"])
    project.call("from django_snapshots.execution import collect\ncollect()")
    assert kept(project) == []
    project.snapshots["SAFETY_KEEP"] = 3600
    made = [restored(project, databases=["other"])["undo"] for _ in range(3)]
    assert [item["run"] for item in kept(project)] == [made[2], made[1]]


def kept(project):
    return json.loads(project.manage("snapshots", "undo", "--list", "--format", "json").stdout)


def test_ten_restores_in_a_row_leave_a_journal_that_tells_all_ten(project):
    made = [restored(project, databases=["default"])["undo"] for _ in range(10)]
    rows = query(
        project, "default", "SELECT id FROM django_snapshots_run WHERE kind = 'restore' AND state = 'succeeded'"
    )
    assert {row[0] for row in rows} == set(made)


def test_signals_are_sent_before_and_after_and_can_stop_it(project):
    code = (
        "from django_snapshots import signals\n"
        "heard = []\n"
        "def before(**words): heard.append(('before', words['kind'], words['name'], words['targets']))\n"
        "def after(**words): heard.append(('after', words['run'])); raise ValueError('too late')\n"
        "signals.pre_restore.connect(before)\n"
        "signals.post_restore.connect(after)\n"
        f"report = django_snapshots.restore_snapshot('before', databases=['other'], confirm={targets(project)!r})\n"
        "answer = [heard, report]"
    )
    heard, report = project.call(code)
    assert heard == [["before", "restore", "before", [["database", "other"]]], ["after", report["undo"]]]
    assert any("too late" in note for note in report["notes"])
    change(project, "stays")
    answer = project.call(
        "from django_snapshots import signals\n"
        "def before(**words): raise ValueError('not now')\n"
        "signals.pre_restore.connect(before)\n"
        f"answer = django_snapshots.restore_snapshot('before', confirm={targets(project)!r})"
    )
    assert "not now" in answer["error"]
    assert "nothing was changed" in answer["error"]
    holds(project, "stays", "stays")


def test_check_tells_and_touches_nothing(project):
    shown = project.manage("snapshots", "restore", "before", "--check", "--format", "json")
    report = json.loads(shown.stdout)
    assert report["possible"] is True
    assert report["errors"] == []
    holds(project, "changed", "changed")
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "dumpdata"}
    shown = project.manage("snapshots", "restore", "before", "--check")
    assert shown.returncode == 5
    assert "SQLiteConnector" in shown.stdout
    project.snapshots |= {"PROJECT": "shop", "ALLOW_RESTORE": False}
    report = json.loads(project.manage("snapshots", "restore", "before", "--check", "--format", "json").stdout)
    assert [any(word in text for text in report["errors"]) for word in ("'shop'", "ALLOW_RESTORE", "SQLiteC")] == [
        True
    ] * 3
    shown = project.manage("snapshots", "restore", "before", stdin="")
    assert (shown.returncode, "SQLiteConnector" in shown.stderr) == (5, True)


def test_media_can_be_merged(project):
    (project.media / "late.txt").write_text("came later")
    restored(project, artifacts=["media"], merge=True)
    assert (project.media / "picture.png").read_bytes() == b"\x89PNG picture"
    assert (project.media / "late.txt").read_text() == "came later"
    undone(project)
    assert (project.media / "picture.png").read_text() == "changed"
    restored(project, artifacts=["media"])
    assert not (project.media / "late.txt").exists()


def test_into_another_alias(project):
    report = project.call(
        f"answer = django_snapshots.restore_snapshot('before', databases=['default'], into={{'default': 'other'}}, "
        f"confirm={targets(project)!r})"
    )
    assert "restored" in report, report
    assert content(project, "other") == ["order in default"]
    assert content(project, "default") == ["changed"]
    undone(project)
    assert content(project, "other") == ["changed"]


def test_into_a_database_of_another_name(project, tmp_path):
    name = str(tmp_path / "copy.sqlite3")
    report = project.call(
        "answer = django_snapshots.restore_snapshot('before', databases=['default'], "
        f"database_names={{'default': {name!r}}})"
    )
    assert "restored" in report, report
    project.databases["copy"] = {**project.databases["default"], "NAME": name}
    assert content(project, "copy") == ["order in default"]
    assert content(project, "default") == ["changed"]
    answer = project.call(
        "answer = django_snapshots.restore_snapshot('before', artifacts=['media'], into={'default': 'other'}, "
        f"confirm={targets(project)!r})"
    )
    assert answer["type"] == "SnapshotPreflightError"


def test_a_worker_undoes(project, broker_url):
    project.broker = broker_url
    restored(project)
    project.call(f"from django_snapshots.tasks import undo\nundo.delay(confirm={targets(project)!r})")
    worker = WorkerProcess(project)
    try:
        wait_until(
            lambda: (
                query(project, "default", "SELECT state FROM django_snapshots_run WHERE kind = 'undo'")
                == [("succeeded",)]
            ),
            "the end of the undo",
        )
    finally:
        worker.teardown()
    holds(project, "changed", "changed")
