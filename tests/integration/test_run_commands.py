"""``manage.py snapshots status``, ``cancel`` and ``sweep``, waiting, and what ends a command before its time."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.integration.conftest import entry
from tests.integration.media_attempt import attempt
from tests.integration.sqlite_projects import query, sqlite_project
from tests.integration.test_commands import at_work, fails, ok, told
from tests.integration.test_media_switch import NEW
from tests.projects import ROOT, Project, WorkerProcess, wait_until

SLEEPING = "tests.integration.test_inline.SleepingConnector"
ENDLESS = "tests.integration.test_commands.EndlessConnector"


@pytest.fixture
def project(tmp_path):
    return sqlite_project(tmp_path)


@contextlib.contextmanager
def started(project: Project, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, which the test ends or waits for."""
    with subprocess.Popen(
        [sys.executable, "-m", "django", "snapshots", *arguments],
        env=project.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def a_byte(project):
    """Wait until some step has stored something."""
    found = "SELECT 1 FROM django_snapshots_step WHERE content_bytes > 0 AND state = 'running'"
    wait_until(lambda: query(project, "default", found), "a byte")


def a_queued_run(project):
    return project.call(
        "from django_snapshots.models import Run\nanswer = str(Run.objects.create(kind='snapshot', name='nightly').pk)"
    )


# Status


def test_status_of_nothing_says_that_nobody_sweeps(project):
    printed = ok(project, "status")
    assert "No run is at work or waits." in printed
    assert "never swept" in printed
    answer = told(project, "status")
    assert (answer["live"], answer["ended"], answer["seconds_since_sweep"]) == ([], [], None)
    assert "Is beat running" in answer["warnings"][0]
    ok(project, "sweep")
    assert not [sentence for sentence in told(project, "status")["warnings"] if "swept" in sentence]
    query(project, "default", "UPDATE django_snapshots_housekeeping SET swept_at = '2026-01-01 00:00:00'")
    assert "last swept" in told(project, "status")["warnings"][0]


def test_status_says_when_nobody_would_take_a_task(project, broker_url):
    assert "No worker answered" in " ".join(told(project, "status")["warnings"])
    project.broker = broker_url
    worker = WorkerProcess(project)
    try:
        worker.ready()
        assert not [sentence for sentence in told(project, "status")["warnings"] if "No worker" in sentence]
    finally:
        worker.teardown()
    project.broker = "redis://:hidden@127.0.0.1:1/0"
    warned = " ".join(told(project, "status")["warnings"])
    assert "can't be reached" in warned
    assert "hidden" not in warned


def test_status_tells_who_works_on_what_and_what_waits(project):
    run = at_work(project, "snapshot", "nightly", "database:x", exclusive=True)
    query(
        project,
        "default",
        "UPDATE django_snapshots_step SET heartbeat_at = datetime('now', '-7 seconds'), content_bytes = 1234567, "
        "attempts = 2, error = 'its worker gave no sign of life; begun anew.'",
    )
    waiting = a_queued_run(project)
    ok(project, "backup", "earlier", "--artifact", "environment")
    answer = told(project, "status")
    at, queued = answer["live"]
    assert (at["run"], at["kind"], at["name"], at["state"]) == (run, "snapshot", "nightly", "running")
    (step,) = at["steps"]
    assert (step["what"], step["holder"], step["attempts"]) == ("database default", "elsewhere:1", 2)
    assert (step["bytes"], 6 < step["silent_for"] < 120) == (1_234_567, True)
    assert (queued["run"], queued["waits"]) == (waiting, "for a worker on the queue")
    assert [run["name"] for run in answer["ended"]] == ["earlier"]
    printed = ok(project, "status")
    for words in ("1.2 MB", "attempt 2", "elsewhere:1", "last sign of life", "begun anew", "for a worker", "earlier"):
        assert words in printed
    one = told(project, "status", run[:8])
    assert (one["run"], one["request"]) == (run, {})
    assert "elsewhere:1" in ok(project, "status", run)
    fails(project, 3, "status", "0" * 32, words=["There is no run"])
    fails(project, 3, "status", "zz", words=["There is no run"])


def test_without_a_journal_runs_can_not_be_looked_at(project):
    query(project, "default", "DROP TABLE django_snapshots_lock")
    for command in (["status"], ["cancel", "0" * 32]):
        fails(project, 1, *command, words=["The journal can't be used"])
    assert told(project, "sweep") == {"settled": []}


RESTORE = f"{'5' * 32}_1_0"


def left_in_the_middle(project: Project) -> list[Path]:
    """What a restore of media was building, of which no journal knows, when it was killed."""
    archive = project.directory / "media.tar"
    archive.write_bytes(NEW)
    with attempt(project.media, "restore", archive, RESTORE, "prepared", signal.SIGKILL, "exchange") as child:
        assert child.wait(60) == -signal.SIGKILL
    return list(project.directory.glob(f".django-snapshots-*{RESTORE}"))


@pytest.mark.parametrize("engine", ["postgres", "mariadb"])
def test_a_sweep_tells_a_journal_that_is_away_from_one_that_is_not_there(
    project: Project, engine: str, request: pytest.FixtureRequest
) -> None:
    project.snapshots["ARTIFACTS"] = ["media"]
    there = entry(request.getfixturevalue(f"make_{engine}")())
    away = {**there, "HOST": str(project.directory / "nobody")}
    (left,) = left_in_the_middle(project)
    project.databases["default"] = away
    fails(project, 1, "sweep", words=["'default' does not answer", "Nothing was swept", "sweep --without-journal"])
    fails(project, 1, "sweep", "--collect", words=["'default' does not answer"])
    assert left.exists()
    assert told(project, "sweep", "--without-journal") == {"settled": [f"directory {left}"]}
    assert not left.exists()
    left_in_the_middle(project)
    project.databases["default"] = {**there, "NAME": "never_made"}
    assert told(project, "sweep") == {"settled": [f"directory {left}"]}


def test_whoever_restores_while_the_journal_is_away_is_told_that_nothing_is_locked(project: Project) -> None:
    project.call("django_snapshots.create_snapshot('before', artifacts=['media'])")
    (project.media / "late").write_text("late")
    arguments = ["restore", "before", "--artifact", "media"]
    assert told(project, *arguments, "--check")["warnings"] == []
    project.databases["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop",
        "HOST": str(project.directory),
        "USER": "nobody",
        "PASSWORD": "hunter2",
    }
    (warning,) = told(project, *arguments, "--check")["warnings"]
    assert "'default' does not answer" in warning
    assert "nothing is locked" in warning
    done = project.manage("snapshots", *arguments, "--no-input", "--confirm", str(project.media))
    assert done.returncode == 0, done.stderr
    assert "nothing is locked" in done.stderr
    assert "hunter2" not in warning + done.stderr
    assert not (project.media / "late").exists()
    done = project.manage("snapshots", "undo", "--artifact", "media", "--no-input")
    assert "nothing is locked" in done.stderr


def test_what_no_journal_knows_is_settled_on_demand(project: Project) -> None:
    (left,) = left_in_the_middle(project)
    assert "removed" in told(project, "sweep", "--collect")
    assert left.exists()
    at_work(project, "restore", "media", f"media:{project.media}", exclusive=True)
    assert told(project, "sweep", "--without-journal") == {"settled": []}
    query(project, "default", "DELETE FROM django_snapshots_lock")
    assert told(project, "sweep", "--without-journal") == {"settled": [f"directory {left}"]}
    assert "what 0 restores had left" in ok(project, "sweep", "--without-journal")


# Cancel


def test_a_run_that_nobody_has_begun_is_cancelled_at_once(project):
    run = a_queued_run(project)
    assert "has ended: cancelled" in ok(project, "cancel", run[:8])
    (found,) = project.runs()
    assert (found["state"], found["error"].startswith("Cancelled by ")) == ("cancelled", True)
    fails(project, 1, "cancel", run, words=["has ended: cancelled", "nothing to cancel"])
    fails(project, 3, "cancel", "0" * 32)
    fails(project, 1, "cancel", run, "--wait", "-1", words=["--wait"])


def test_a_run_at_work_elsewhere_is_cancelled_and_waited_for(project):
    project.snapshots["DATABASE_CONNECTORS"] = {"other": ENDLESS}
    with started(project, "backup", "before", "--artifact", "database", "--database", "other") as process:
        a_byte(project)
        (run,) = project.runs()
        answer = told(project, "cancel", run["id"], "--wait", "60")
        assert (answer["state"], bool(answer["cancel_requested_by"])) == ("cancelled", True)
        words = process.communicate(timeout=180)[1]
    assert process.returncode == 8
    assert "Cancelled by" in words
    assert project.stored() == []


def test_a_wait_that_is_too_short_says_so(project):
    run = at_work(project, "verify", "before", "snapshot:before")
    assert "is told to end" in ok(project, "cancel", run)
    fails(project, 1, "cancel", run, "--wait", "0.1", words=["has not ended within 0.1 s"])


# Sweep


def test_a_sweep_takes_from_the_dead_and_says_so(project):
    run = at_work(project, "snapshot", "nightly", "database:x", seconds=-1)
    printed = ok(project, "sweep")
    assert "elsewhere:1 gave no sign of life" in printed
    assert "begun anew" in printed
    assert "1 steps taken from dead workers, 0 runs ended" in printed
    query(project, "default", "UPDATE django_snapshots_run SET cancel_requested_at = '2026-01-01 00:00:00'")
    query(project, "default", "UPDATE django_snapshots_run SET touched_at = '2026-01-01 00:00:00'")
    answer = told(project, "sweep")
    assert [(item["run"], item["state"]) for item in answer["ended"]] == [(run, "cancelled")]
    assert answer["removed"] is None
    assert "Swept: 0 steps taken from dead workers, 0 runs ended, 0 messages sent." in ok(project, "sweep")


def test_a_sweep_works_while_the_broker_is_away(project):
    """Nothing answers on that port; what is to be finished is finished all the same."""
    project.broker = "redis://127.0.0.1:1/0"
    run = at_work(project, "restore", "nightly", "snapshot:nightly", seconds=-1)
    a_queued_run(project)
    query(
        project,
        "default",
        "UPDATE django_snapshots_run SET created_at = '2026-01-01 00:00:00', touched_at = '2026-01-01 00:00:00'",
    )
    answer = told(project, "sweep")
    assert [(item["run"], item["state"]) for item in answer["ended"]] == [(run, "failed")]
    assert "Nothing was changed" in answer["ended"][0]["error"]
    assert (answer["sent"], answer["not_sent"]) == (0, 1)


def test_a_sweep_collects_only_when_asked(project):
    project.snapshots["SWEEP_GRACE"] = 0
    project.snapshots["DATABASE_CONNECTORS"] = {"other": ENDLESS}
    with started(project, "backup", "before", "--artifact", "database") as process:
        done = "SELECT 1 FROM django_snapshots_step WHERE state = 'succeeded'"
        wait_until(lambda: query(project, "default", done), "the first object")
        process.kill()
        process.wait()
    # As if its finisher had been killed too, before it could remove anything.
    for table in ("step", "run"):
        query(project, "default", f"UPDATE django_snapshots_{table} SET state = 'failed'")
    query(project, "default", "UPDATE django_snapshots_run SET touched_at = '2026-01-01 00:00:00'")
    (left,) = project.stored()
    assert told(project, "sweep")["removed"] is None
    assert project.stored() == [left]
    assert told(project, "sweep", "--collect")["removed"] == [left]
    assert project.stored() == []
    assert "0 objects removed from the storage" in ok(project, "sweep", "--collect")


# Waiting


def test_one_in_the_way_is_waited_for_as_long_as_asked(project):
    ok(project, "backup", "before", "--artifact", "environment")
    run = at_work(project, "verify", "before", "snapshot:before", what="Snapshot 'before'")
    fails(project, 7, "delete", "before", "--no-input", "--wait", "0.1", words=[run, "in use"])
    with started(project, "delete", "before", "--no-input", "--wait", "100") as process:
        why = "SELECT error FROM django_snapshots_run WHERE state = 'queued' AND error != ''"
        ((text,),) = wait_until(lambda: query(project, "default", why), "the run to wait")
        assert run in text
        assert "waits for its end" in text
        (queued,) = [item for item in told(project, "status")["live"] if item["state"] == "queued"]
        assert queued["waits"] == text
        ok(project, "cancel", run)
        query(project, "default", "UPDATE django_snapshots_step SET state = 'cancelled'")
        query(project, "default", "UPDATE django_snapshots_run SET touched_at = NULL WHERE kind = 'verify'")
        assert process.communicate(timeout=180)[0] == "Deleted before.\n"
    assert process.returncode == 0
    assert project.stored() == []
    assert [run["error"] for run in project.runs() if run["state"] == "succeeded"] == ["", ""]


def test_a_wait_is_a_number_of_seconds(project):
    for command in (["backup"], ["verify"], ["restore"], ["delete", "x", "--no-input"]):
        fails(project, 2, *command, "--wait", "-1", words=["seconds"])
        fails(project, 2, *command, "--wait", "soon")


# The end of the process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("aliases", [["default", "other"], ["other"]], ids=["threads", "main thread"])
def test_a_signal_ends_the_run_before_the_command(project, tmp_path, number, code, aliases):
    project.snapshots["DATABASE_CONNECTORS"] = {"default": SLEEPING, "other": SLEEPING}
    project.extra_environment["MEETING_PLACE"] = str(tmp_path)
    chosen = [word for alias in aliases for word in ("--database", alias)]
    with started(project, "backup", "--artifact", "database", *chosen) as process:
        wait_until(lambda: len(list(tmp_path.glob("pid.*"))) == len(aliases), "the tools")
        process.send_signal(number)
        words = process.communicate(timeout=180)[1]
    assert process.returncode == code, words
    assert f"Ended by {number.name}." in words
    assert "Traceback" not in words
    assert project.stored() == []
    (run,) = project.runs()
    assert run["state"] == "failed"
    assert "interrupted" in run["error"]
    assert {step["state"] for step in project.steps()} <= {"failed", "cancelled"}


def test_a_signal_that_is_ignored_stays_so(project, tmp_path):
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "tests.integration.test_run_commands.ToldConnector"}
    project.extra_environment["MEETING_PLACE"] = str(tmp_path)
    with subprocess.Popen(
        [
            "nohup",
            sys.executable,
            "-m",
            "django",
            "snapshots",
            "backup",
            "x",
            "--database",
            "other",
            "--format",
            "json",
        ],
        env=project.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        wait_until((tmp_path / "begun").exists, "the dump")
        process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        assert json.loads(process.communicate(timeout=180)[0])["name"] == "x"
    assert process.returncode == 0


class ToldConnector:
    """Its dump ends when it is told to."""

    def dump(self, db_alias, dest):
        import os
        from pathlib import Path

        place = Path(os.environ["MEETING_PLACE"])
        (place / "begun").touch()
        wait_until((place / "go").exists, "the word")
        dest.write_bytes(b"told")
        return {"format": "told"}

    def restore(self, db_alias, src):
        raise NotImplementedError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_following_learns_that_the_run_goes_on(project, tmp_path, number, broker_url):
    project.broker = broker_url
    with started(project, "backup", "later", "--artifact", "environment", "--queue") as process:
        with redis.Redis.from_url(broker_url) as queue:
            wait_until(lambda: queue.llen("snapshots"), "the message")
        process.send_signal(number)
        words = process.communicate(timeout=180)[1]
    assert process.returncode == 128 + number
    (run,) = project.runs()
    assert run["state"] == "queued"
    assert "goes on without you" in words
    assert f"snapshots cancel {run['id']}" in words
    worker = WorkerProcess(project)
    try:
        worker.ready()
        wait_until(lambda: project.stored(), "the snapshot")
    finally:
        worker.teardown()
