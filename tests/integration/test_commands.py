"""``manage.py snapshots`` as a person and as a program meets it: its words, its exit codes, no traceback."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from django_snapshots import exceptions
from django_snapshots.management.codes import EXIT_CODES
from django_snapshots.transfer import Dump
from tests.integration.sqlite_projects import BROKEN_CONNECTOR, content, path, query, sqlite_project, targets, write
from tests.projects import ROOT, wait_until

COMMANDS = ("backup", "restore", "verify", "drill", "list", "info", "delete", "prune")


@pytest.fixture
def project(tmp_path):
    return sqlite_project(tmp_path)


def run(project, *arguments, stdin=None):
    """Run the command; whatever happens, it is told without a traceback and without a secret."""
    done = project.run("-m", "django", "snapshots", *arguments, stdin=stdin)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    return done


def ok(project, *arguments, stdin=None):
    done = run(project, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told(project, *arguments):
    return json.loads(ok(project, *arguments, "--format", "json"))


def fails(project, code, *arguments, words=(), stdin=None):
    """It ends with *code* and one error that says *words*; in JSON it says the same."""
    done = run(project, *arguments, stdin=stdin)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    for word in words:
        assert word in done.stderr
    return done


@pytest.mark.parametrize("command", COMMANDS)
def test_help(project, command):
    text = ok(project, command, "--help")
    assert "--format" in text
    # A sentence of its own, and not the options alone.
    assert text.split("\n\n")[1].rstrip().endswith(".")


def test_help_names_every_command(project):
    text = ok(project, "--help")
    for command in COMMANDS:
        assert command in text


def test_a_whole_story_in_text(project):
    assert "There are no snapshots in directory" in ok(project, "list")
    taken = ok(project, "backup", "before", "--metadata", "why=a test", "--metadata", "equation=a=b")
    assert "default.sqlite3.zst" in taken
    assert "Took before" in taken
    listed = ok(project, "list")
    assert "before" in listed
    assert "default, other, media, requirements" in listed
    shown = ok(project, "info", "before")
    assert '"why": "a test"' in shown
    assert '"equation": "a=b"' in shown
    assert "sha256:" in shown
    assert "before is whole: 4 files" in ok(project, "verify")
    write(project, "default", "changed")
    answers = "\n".join(targets(project)) + "\n"
    asked = ok(project, "restore", "before", stdin=answers)
    assert f'will replace SQLite database "{path(project)}"' in asked
    assert "Restored before." in asked
    assert content(project) == ["order in default"]
    assert "Deleted before." in ok(project, "delete", "before", stdin="before\n")
    assert project.stored() == []


def test_a_whole_story_in_json(project):
    assert told(project, "list") == []
    taken = told(project, "backup", "before", "--database", "other", "--artifact", "database")
    assert (taken["name"], len(taken["artifacts"])) == ("before", 1)
    beside = {"pinned": None, "proof": {"verify": None, "drill": None}}
    assert told(project, "list") == [{**taken, **beside}]
    assert told(project, "info")["artifacts"] == taken["artifacts"]
    assert told(project, "verify", "before", "--level", "1")["level"] == 1
    write(project, "other", "changed")
    report = told(project, "restore", "--confirm", str(path(project, "other")))
    assert report["restored"][0]["subject"] == "other"
    assert content(project, "other") == ["order in other"]
    fails(project, 6, "delete", "before", "--format", "json", words=["--no-input"])
    assert told(project, "delete", "before", "--no-input") == {"deleted": "before"}


def test_a_disk_that_is_not_mounted_is_no_empty_list(project):
    told(project, "backup", "before")
    project.storage.rename(project.storage.with_name("elsewhere"))
    fails(project, 1, "list", words=("is not the storage that it was",))
    project.storage.mkdir()
    fails(project, 1, "list", words=("is not the storage that it was",))
    project.storage.rmdir()
    project.storage.with_name("elsewhere").rename(project.storage)
    ok(project, "delete", "before", "--no-input")
    assert told(project, "list") == []


def test_an_unreadable_manifest_is_listed_as_such(project):
    ok(project, "backup", "before", "--artifact", "environment")
    (project.storage / "before" / "manifest.json").write_text("{}")
    listed = run(project, "list")
    assert "before" in listed.stdout
    assert "can't be read" in listed.stdout
    (entry,) = json.loads(run(project, "list", "--format", "json").stdout)
    assert "error" in entry


def test_the_wrong_word_replaces_nothing(project):
    ok(project, "backup", "before", "--artifact", "database")
    write(project, "default", "changed")
    for stdin in ("yes\nyes\n", "default\nother\n", f"{path(project)}\n", "", "\n\n"):
        done = fails(project, 6, "restore", "before", stdin=stdin)
        assert "nothing was touched" in done.stderr.lower()
    fails(project, 6, "restore", "before", "--no-input", words=[str(path(project))])
    fails(project, 6, "restore", "before", "--format", "json")
    assert content(project) == ["changed"]
    confirmed = [word for target in targets(project) for word in ("--confirm", target)]
    ok(project, "restore", "before", "--no-input", *confirmed)
    assert content(project) == ["order in default"]


def test_delete_asks_for_the_name(project):
    ok(project, "backup", "before", "--artifact", "environment")
    for stdin in ("yes\n", "", "Before\n"):
        fails(project, 6, "delete", "before", stdin=stdin)
    assert "before/manifest.json" in project.stored()
    ok(project, "delete", "before", "--no-input")
    assert project.stored() == []


# Exit codes


def test_the_codes_are_told_apart():
    codes = [code for _, code, _ in EXIT_CODES]
    assert sorted(codes) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for position, (kind, _, _) in enumerate(EXIT_CODES):
        # A more general class that came first would hide it.
        assert not any(issubclass(kind, earlier) for earlier, _, _ in EXIT_CODES[:position])
    assert EXIT_CODES[-1][0] is exceptions.SnapshotError


def test_not_found_is_3(project):
    for command in (["info", "nowhere"], ["verify", "nowhere"], ["restore", "nowhere"], ["info"], ["verify"]):
        fails(project, 3, *command)
    fails(project, 3, "delete", "nowhere", "--no-input", words=["'nowhere'"])


def test_damage_is_4(project):
    ok(project, "backup", "before", "--artifact", "database")
    (project.storage / "before" / "other.sqlite3.zst").unlink()
    fails(project, 4, "verify", words=["other.sqlite3.zst is missing"])
    confirmed = [word for target in targets(project) for word in ("--confirm", target)]
    fails(project, 4, "restore", "--no-input", *confirmed, words=["other.sqlite3.zst is missing"])
    answer = json.loads(run(project, "verify", "--format", "json").stdout)
    assert answer["type"] == "SnapshotIntegrityError"


def test_what_stands_in_the_way_is_5(project):
    ok(project, "backup", "before", "--artifact", "database")
    project.snapshots["ENVIRONMENT"] = "staging"
    fails(project, 5, "restore", "before", "--no-input", words=["staging", "--elsewhere"])
    confirmed = [word for target in targets(project) for word in ("--confirm", target)]
    ok(project, "restore", "before", "--no-input", "--elsewhere", *confirmed)


def test_wrong_settings_and_arguments_are_2(project):
    fails(project, 2, "backup", "../x", words=["snapshot's name"])
    fails(project, 2, "backup", "--database", "nowhere", words=["'nowhere'"])
    fails(project, 2, "backup", "--artifact", "files", words=["'files'"])
    fails(project, 2, "backup", "--metadata", "nothing", words=["KEY=VALUE"])
    fails(project, 2, "backup", "--nonsense")
    fails(project, 2, "nonsense")
    fails(project, 2)
    fails(project, 2, "verify", "--level", "4", words=["snapshots drill"])
    project.snapshots["ENCRYPTION"] = {"recipients": []}
    for command in (["backup"], ["list"], ["info", "x"], ["verify"], ["restore"], ["delete", "x", "--no-input"]):
        fails(project, 2, *command, words=["ENCRYPTION"])


def test_no_setting_at_all_is_2(project):
    project.extra_environment["SNAPSHOTS_TEST_SNAPSHOTS"] = json.dumps({"QUEUE": "x"})
    for command in (["backup"], ["list"], ["verify"], ["restore"]):
        fails(project, 2, *command, words=["STORAGE"])


def test_an_engine_that_is_not_there_is_2(project):
    project.databases["other"]["ENGINE"] = "nowhere.at.all"
    assert run(project, "backup").returncode in {1, 2}
    assert not list(project.storage.glob("*/manifest.json"))


def test_a_name_that_exists_is_1(project):
    ok(project, "backup", "before", "--artifact", "environment")
    fails(project, 1, "backup", "before", words=["'before'", "exists"])


def test_a_dump_that_fails_is_1_with_the_tools_words(project):
    project.snapshots["DATABASE_CONNECTORS"] = {"other": BROKEN_CONNECTOR}
    done = fails(project, 1, "backup", words=["'other'", "ORA-00942"])
    assert "Took" not in done.stdout
    answer = json.loads(run(project, "backup", "--format", "json").stdout)
    assert answer["type"] == "SnapshotConnectorError"


def test_a_storage_that_can_not_be_read_is_1(project):
    project.storage.write_text("a file where the directory should be")
    for command in (["list"], ["backup"], ["verify"], ["info", "x"]):
        assert run(project, *command).returncode in {1, 3}, command
    fails(project, 1, "list")


def test_a_server_that_does_not_answer_is_named(project, tmp_path):
    project.databases["other"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop",
        "HOST": str(tmp_path),
        "USER": "nobody",
        "PASSWORD": "hunter2",
    }
    fails(project, 1, "backup", "--artifact", "database", words=["other"])
    assert project.stored() == []


def test_a_journal_that_does_not_answer_does_not_stop_it(project, tmp_path):
    """The other alias and the media can be saved all the same."""
    project.databases["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop",
        "HOST": str(tmp_path),
        "USER": "nobody",
        "PASSWORD": "hunter2",
    }
    assert "Took" in ok(project, "backup", "--database", "other")
    fails(project, 1, "backup", "--queue")


def at_work(project, kind, name, lock, *, exclusive=False, what="", seconds=600):
    """A run of somebody else's worker, whose lease holds for some time, and that has one lock; returns its id."""
    return project.call(
        "from datetime import timedelta\n"
        "from django_snapshots import runs\n"
        "from django_snapshots.models import Lock, Run, State, Step\n"
        f"run = Run.objects.create(kind={kind!r}, state=State.RUNNING, name={name!r})\n"
        f"until = runs.DatabaseNow({seconds})\n"
        "held = {'state': State.RUNNING, 'holder': 'elsewhere:1', 'lease_until': until, 'token': 1, 'attempts': 1}\n"
        f"Step.objects.create(run=run, position=0, type='database', subject='default', **held)\n"
        f"Lock.objects.create(run=run, key={lock!r}, exclusive={exclusive}, what={what!r})\n"
        "answer = str(run.pk)"
    )


def test_a_run_in_the_way_is_7(project):
    ok(project, "backup", "before", "--artifact", "environment")
    at_work(project, "verify", "before", "snapshot:before")
    fails(project, 7, "delete", "before", "--no-input", words=["verify run"])
    assert "before/manifest.json" in project.stored()


class EndlessConnector:
    """Its dump goes on until somebody ends it."""

    @contextlib.contextmanager
    def open_dump(self, alias, request):
        def chunks():
            for _ in range(6000):
                yield b"x" * 1000
                time.sleep(0.01)

        yield Dump(suffix="x", started_at=datetime.now(UTC), chunks=chunks(), metadata=dict)

    def target(self, subject):
        raise NotImplementedError

    def prepare(self, subject, source, request):
        raise NotImplementedError


def test_a_cancelled_run_is_8(project):
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "tests.integration.test_commands.EndlessConnector"}
    with subprocess.Popen(
        [sys.executable, "-m", "django", "snapshots", "backup", "--artifact", "database", "--database", "other"],
        env=project.environment(),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(
            lambda: query(project, "default", "SELECT 1 FROM django_snapshots_step WHERE content_bytes > 0"), "a byte"
        )
        query(project, "default", "UPDATE django_snapshots_run SET cancel_requested_at = '2026-01-01 00:00:00'")
        words = process.communicate(timeout=30)[1]
    assert process.returncode == 8, words
    assert "Cancelled by somebody." in words
    assert project.stored() == []
    assert [run["state"] for run in project.runs()] == ["cancelled"]


def test_an_interrupt_is_130(project, tmp_path):
    connector = "tests.integration.test_inline.SleepingConnector"
    project.snapshots["DATABASE_CONNECTORS"] = {"default": connector, "other": connector}
    project.extra_environment["MEETING_PLACE"] = str(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "django", "snapshots", "backup"],
        env=project.environment(),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: len(list(tmp_path.glob("pid.*"))) == 2, "the tools")
        process.send_signal(signal.SIGINT)
        words = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Interrupted." in words
    assert "Traceback" not in words
    assert project.stored() == []


def test_who_asked_is_in_the_journal(project):
    ok(project, "backup", "before", "--artifact", "environment")
    (found,) = project.call(
        "from django_snapshots.models import Run\n"
        "answer = list(Run.objects.values('requested_by', 'requested_from', 'state', 'name'))"
    )
    assert found["requested_from"] == "command"
    assert found["requested_by"]
    assert (found["state"], found["name"]) == ("succeeded", "before")
