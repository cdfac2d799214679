"""SNAPSHOTS["SCHEDULES"] become beat's rows, and beat's rows become snapshots; a real beat, a real worker."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import Service
from celery.signals import beat_init
from django.core.management import call_command
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks
from django_celery_beat.schedulers import DatabaseScheduler
from pytest_django import Settings as SettingsWrapper

from django_snapshots import schedules
from django_snapshots.conf import get_schedules
from django_snapshots.models import Kind, Run
from django_snapshots.retention import Policy
from django_snapshots.schedules import slot_of
from django_snapshots.timetable import KEYS, TASKS
from tests.databases import Maker
from tests.integration.conftest import entry
from tests.integration.pages import text_of, the_block
from tests.projects import BeatProcess, Project, WorkerProcess, wait_until

NIGHTLY = {"cron": "0 3 * * *"}


@pytest.fixture
def rows(settings: SettingsWrapper, db: None) -> Any:
    """``rows(entries)`` writes SCHEDULES, as beat does when it starts, and returns beat's rows of ours by name."""

    def write(entries: dict[str, Any] | None, **more: Any) -> dict[str, PeriodicTask]:
        settings.SNAPSHOTS = {"STORAGE": None, "SCHEDULES": entries, **more}
        schedules.write(get_schedules() or {})
        besides = ("somebody.elses", "django_snapshots.sweep")  # which is there whatever the settings say
        return {row.name: row for row in PeriodicTask.objects.exclude(task__in=besides)}

    return write


# What is written


def test_two_lines_become_a_row_with_everything_that_beat_needs(rows: Any, settings: SettingsWrapper) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    (row,) = rows({"nightly": NIGHTLY}).values()
    assert (row.name, row.task, row.enabled) == ("snapshots: nightly", "django_snapshots.snapshot", True)
    assert json.loads(row.kwargs) == {"schedule": "nightly"}
    assert (row.crontab.minute, row.crontab.timezone) == ("0", ZoneInfo("Europe/Berlin"))
    assert row.schedule.hour == {3}
    assert (row.interval, row.queue, row.last_run_at, row.expire_seconds) == (None, None, None, 86400)


def test_an_interval_is_written_in_its_largest_unit(rows: Any) -> None:
    made = rows({"a": {"every": {"minutes": 120}}, "b": {"every": 90, "task": "verify", "level": 1}})
    assert [(row.interval.every, row.interval.period) for row in made.values()] == [(2, "hours"), (90, "seconds")]
    assert json.loads(made["snapshots: b"].kwargs) == {"level": 1, "schedule": "b"}


def test_nothing_is_touched_as_long_as_no_setting_changes(rows: Any) -> None:
    (before,) = rows({"nightly": NIGHTLY}).values()
    changed = PeriodicTasks.last_change()
    (after,) = rows({"nightly": NIGHTLY}).values()
    # The clock of an interval that has never run is the row's last change.
    assert after.date_changed == before.date_changed
    assert PeriodicTasks.last_change() == changed


def test_what_an_operator_changed_stays_until_its_own_setting_changes(rows: Any) -> None:
    (row,) = rows({"nightly": NIGHTLY}).values()
    row.enabled = False
    row.name = "do not run before the audit"
    row.kwargs = json.dumps({"databases": ["default"], "schedule": "nightly"})
    row.crontab = CrontabSchedule.objects.create(hour="7")
    row.priority = 3
    row.save()

    (row,) = rows({"nightly": {**NIGHTLY, "task": "verify"}}).values()
    assert row.task == "django_snapshots.verify"
    assert (row.name, row.enabled, row.crontab.hour, row.priority) == ("do not run before the audit", False, "7", 3)
    assert json.loads(row.kwargs)["databases"] == ["default"]

    (row,) = rows({"nightly": {"cron": "0 4 * * *", "task": "verify"}}).values()
    assert (row.schedule.hour, row.enabled) == ({4}, False)
    (row,) = rows({"nightly": {"cron": "0 4 * * *", "task": "verify", "enabled": False}}).values()
    (row,) = rows({"nightly": {"cron": "0 4 * * *", "task": "verify", "enabled": True}}).values()
    assert row.enabled


def test_cron_and_interval_can_take_each_others_place(rows: Any) -> None:
    (first,) = rows({"nightly": NIGHTLY}).values()
    (row,) = rows({"nightly": {"every": 60}}).values()
    assert (row.pk, row.crontab, str(row.interval)) == (first.pk, None, "every minute")
    (row,) = rows({"nightly": NIGHTLY}).values()
    assert (row.pk, row.interval) == (first.pk, None)


def test_a_new_time_holds_from_now_on(rows: Any) -> None:
    (row,) = rows({"nightly": NIGHTLY}).values()
    PeriodicTask.objects.update(last_run_at=timezone.now() - timedelta(days=3))
    (row,) = rows({"nightly": {"cron": "0 4 * * *"}}).values()
    assert timezone.now() - row.last_run_at < timedelta(minutes=1)


def test_what_leaves_the_settings_is_removed_and_nothing_else(rows: Any) -> None:
    shared = IntervalSchedule.objects.create(every=1, period="hours")
    elses = PeriodicTask.objects.create(name="elses", task="somebody.elses", interval=shared, kwargs='{"a": 1}')
    own = PeriodicTask.objects.create(name="by hand", task="django_snapshots.snapshot", interval=shared)
    made = rows({"hourly": {"every": 3600}, "nightly": NIGHTLY})
    assert made["snapshots: hourly"].interval == shared
    assert set(rows({"hourly": {"every": 7200}})) == {"snapshots: hourly", "by hand"}
    assert set(rows(None)) == {"by hand"}
    for row in (elses, own):
        before = row.date_changed
        row.refresh_from_db()
        assert (row.interval, row.date_changed) == (shared, before)
    shared.refresh_from_db()
    assert (shared.every, shared.period) == (1, "hours")


def test_one_that_an_operator_renamed_is_found_again(rows: Any) -> None:
    rows({"nightly": NIGHTLY})
    PeriodicTask.objects.filter(name="snapshots: nightly").update(name="renamed")
    assert list(rows({"nightly": NIGHTLY})) == ["renamed"]
    assert rows({}) == {}


def test_one_whose_headers_were_emptied_is_taken_back_and_stays_paused(rows: Any) -> None:
    (row,) = rows({"nightly": NIGHTLY}).values()
    PeriodicTask.objects.update(headers="{}", enabled=False)
    (again,) = rows({"nightly": {"cron": "0 4 * * *"}}).values()
    assert (again.pk, again.enabled, again.schedule.hour) == (row.pk, False, {4})


def test_one_that_was_deleted_comes_back(rows: Any) -> None:
    rows({"nightly": NIGHTLY})
    PeriodicTask.objects.all().delete()
    assert list(rows({"nightly": NIGHTLY})) == ["snapshots: nightly"]


def test_a_name_that_somebody_else_has_is_left_to_them(rows: Any, caplog: pytest.LogCaptureFixture) -> None:
    every = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.create(name="snapshots: nightly", task="somebody.elses", interval=every)
    assert set(rows({"nightly": NIGHTLY, "other": NIGHTLY})) == {"snapshots: other"}
    assert "somebody else" in caplog.text


def test_beat_always_looks_at_it_whatever_its_hour(rows: Any) -> None:
    """Of plain hours beat loads only those around the present one, and makes good a missed run at the wrong time."""
    rows({f"at {hour}": {"cron": f"0 {hour} * * *"} for hour in range(24)})
    PeriodicTask.objects.update(last_run_at=timezone.now() - timedelta(days=5))
    scheduler = DatabaseScheduler(app=Celery("x", set_as_current=False), lazy=True)
    due = [row.name for row in scheduler.schedule.values() if row.is_due().is_due]
    assert len([name for name in due if name.startswith("snapshots: at ")]) == 24


def test_a_beat_whose_database_has_never_changed_notices_the_rows(settings: SettingsWrapper, db: None) -> None:
    settings.SNAPSHOTS = {"SCHEDULES": {"nightly": NIGHTLY}}
    # As in a database that no `migrate` with the settings has written to.
    PeriodicTasks.objects.all().delete()
    PeriodicTask.objects.all().delete()
    app = Celery("x", set_as_current=False)
    app.conf.result_expires = None
    service = Service(app, scheduler_cls=DatabaseScheduler)
    assert service.scheduler.schedule == {}
    beat_init.send(sender=service)
    assert set(service.scheduler.schedule) == {"snapshots: nightly", "snapshots: housekeeping"}


def test_settings_that_can_not_be_read_remove_nothing(
    rows: Any, settings: SettingsWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    rows({"nightly": NIGHTLY})
    settings.SNAPSHOTS = {"SCHEDULES": {"nightly": {"cron": "wrong"}}}
    schedules.write_in("default")
    assert "five fields" in caplog.text
    settings.SNAPSHOTS = None
    schedules.write_in("default")
    assert PeriodicTask.objects.filter(name="snapshots: nightly").exists()


def test_the_checks_say_what_is_missing(settings: SettingsWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("x", set_as_current=False)
    monkeypatch.setattr(schedules, "current_app", app)
    settings.SNAPSHOTS = {"SCHEDULES": {"nightly": NIGHTLY}}
    assert [message.id for message in schedules.check_installed()] == ["snapshots.E020"]
    assert [message.id for message in schedules.check_memory()] == ["snapshots.W020"]
    app.conf.beat_sync_every = 1
    assert schedules.check_memory() == []
    settings.SNAPSHOTS = {}
    assert schedules.check_installed() == []


class _Router:
    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model: Any, **_hints: Any) -> str | None:
        return self.alias if model._meta.app_label == "django_celery_beat" else None

    db_for_write = db_for_read


@pytest.mark.parametrize("engine", ["postgres", "mariadb", "sqlite"])
def test_migrate_writes_into_the_database_that_beat_reads(
    engine: str, request: pytest.FixtureRequest, settings: SettingsWrapper
) -> None:
    alias = request.getfixturevalue(f"make_{engine}")()
    settings.DATABASE_ROUTERS = [_Router(alias)]
    settings.SNAPSHOTS = {"SCHEDULES": {"nightly": NIGHTLY, "six": {"every": {"hours": 6}}}}
    # Not all of beat's tables are there yet, and this is another app's.
    call_command("migrate", "contenttypes", database=alias, verbosity=0)
    call_command("migrate", database=alias, verbosity=0)
    assert PeriodicTask.objects.using(alias).filter(task="django_snapshots.snapshot").count() == 2
    settings.SNAPSHOTS = {"SCHEDULES": {"six": {"every": {"hours": 7}}}}
    call_command("migrate", database=alias, verbosity=0)
    (row,) = PeriodicTask.objects.using(alias).filter(task="django_snapshots.snapshot")
    assert str(row.interval) == "every 7 hours"


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("docs/reference/schedules.md", "Schedules"),
        ("docs/reference/retention.md", "Retention"),
        ("docs/how-to/nightly-schedule.md", "A snapshot every night, and only so many"),
    ],
)
def test_the_pages_settings_are_read(page: str, heading: str, rows: Any) -> None:
    values: dict[str, Any] = {"SNAPSHOTS": {}}
    exec(the_block(page, heading, "python"), values)
    wanted = values["SNAPSHOTS"].get("SCHEDULES")
    made = rows(wanted, RETENTION=values["SNAPSHOTS"]["RETENTION"])
    assert set(made) == {f"snapshots: {name}" for name in wanted or ()}


def test_the_page_has_every_key() -> None:
    told = {
        name
        for row in re.findall(r"^\| (`.*?) \|", text_of("docs/reference/schedules.md"), flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert told == {*KEYS, *(key for keys in TASKS.values() for key in keys)}
    rules = re.findall(r"^\| `(\w+)` \| (\d) \|", text_of("docs/reference/retention.md"), flags=re.MULTILINE)
    assert {name: int(default) for name, default in rules} == asdict(Policy())


# With a real beat and a real worker


@pytest.fixture
def project(make_sqlite: Maker, tmp_path: Path, broker_url: str) -> Project:
    """A migrated project on SQLite that snapshots its list of packages."""
    made = Project(
        directory=tmp_path / "project",
        databases={"default": entry(make_sqlite())},
        broker=broker_url,
        snapshots={"ARTIFACTS": ["environment"]},
    )
    made.migrate()
    return made


def scheduled(project: Project) -> list[dict[str, Any]]:
    return [run for run in project.runs() if run["requested_from"] == "schedule" and run["state"] == "succeeded"]


def test_beat_and_a_worker_take_prune_verify_and_drill_by_schedule(project: Project) -> None:
    project.snapshots = {"ARTIFACTS": ["database"]}
    project.schedules(
        {
            "every second": {"every": 1, "name": "tick-{timestamp}", "retention": {"keep_last": 2}},
            "look": {"task": "verify", "every": 2},
            "prove": {"task": "drill", "every": 2},
        }
    )
    worker = WorkerProcess(project)
    try:
        worker.ready()
        with BeatProcess(project) as beat:
            beat.says("Scheduler: Sending due task snapshots: every second")

            def done() -> bool:
                runs = scheduled(project)
                pruned = [run for run in runs if run["kind"] == "prune" and run["result"]["deleted"]]
                return bool(pruned) and {"snapshot", "verify", "prune", "drill"} <= {run["kind"] for run in runs}

            wait_until(done, "a snapshot, a verify, a drill and a prune that deleted something")
        worker.kill("SIGTERM")  # what it is at comes to its end
    finally:
        worker.teardown()
    runs = scheduled(project)
    taken = [run for run in runs if run["kind"] == "snapshot"]
    assert all(run["name"].startswith("tick-") and run["requested_by"] == "every second" for run in taken)
    assert taken[0]["request"]["schedule"] == "every second"
    drilled = next(run for run in runs if run["kind"] == "drill")
    assert drilled["requested_by"] == "prove"
    assert drilled["result"]["name"] in {run["name"] for run in taken}
    assert [item["rows_compared"] for item in drilled["result"]["databases"]] == [True]
    pruned = [run for run in runs if run["kind"] == "prune"]
    assert {run["request"]["like"] for run in pruned} <= {run["name"] for run in taken}
    listed = {Path(path).parts[0] for path in project.stored()}
    gone = {item["name"] for run in pruned for item in run["result"]["deleted"]}
    assert gone
    assert not gone & listed


def test_rows_are_written_when_beat_starts_and_a_pause_survives_it(project: Project) -> None:
    assert set(project.periodic_tasks()) == {"snapshots: housekeeping"}
    project.schedules({"tick": {"every": 1}, "nightly": NIGHTLY})
    with BeatProcess(project) as beat:
        # Beat itself has learned of the new rows, in a database that had none.
        beat.says("Scheduler: Sending due task snapshots: tick")
    written = project.periodic_tasks()
    assert {"snapshots: tick", "snapshots: nightly"} <= set(written)
    project.call(
        "from django_celery_beat.models import PeriodicTask\n"
        "row = PeriodicTask.objects.get(name='snapshots: tick')\nrow.enabled = False\nrow.save()"
    )

    project.schedules({"tick": {"every": 1}, "tock": {"every": 1}})
    with BeatProcess(project) as beat:
        beat.says("Scheduler: Sending due task snapshots: tock")
        assert "Sending due task snapshots: tick" not in beat.logs()
    after = project.periodic_tasks()
    assert not after["snapshots: tick"]["enabled"]
    assert after["snapshots: tick"]["pk"] == written["snapshots: tick"]["pk"]
    assert "snapshots: nightly" not in after


def test_two_beats_make_one_run_for_each_time(project: Project) -> None:
    """Each sends its own message for the same times; the journal takes one of them."""
    project.schedules({"tick": {"every": 4, "name": "tick-{timestamp}"}})
    worker = WorkerProcess(project)
    sent = "Scheduler: Sending due task snapshots: tick"
    try:
        worker.ready()
        with BeatProcess(project) as one, BeatProcess(project) as other:
            # One of them may always find that the other has just sent: the row in the database says so. So a third one
            # sends too, right behind whoever did.
            for count in (2, 3, 4):
                wait_until(lambda count=count: one.logs().count(sent) + other.logs().count(sent) >= count, "a message")
                project.call("snapshot.apply_async(kwargs={'schedule': 'tick', 'name': 'tick-{timestamp}'})")
        ticks = wait_until(lambda: settled(project), "the runs to end")
    finally:
        worker.teardown()
    messages = 3 + sum(beat.logs().count(sent) for beat in (one, other))
    slots = [tick["slot"] for tick in ticks]
    assert len(set(slots)) == len(slots)
    assert all(slot.startswith("tick#") for slot in slots)
    assert {tick["state"] for tick in ticks} == {"succeeded"}
    made = [datetime.fromisoformat(tick["created_at"]) for tick in ticks]
    assert all(later - earlier >= timedelta(seconds=2) for earlier, later in pairwise(made))
    assert len(ticks) < messages


def settled(project: Project) -> list[dict[str, Any]]:
    """The runs of the schedule, once all have ended."""
    found: list[dict[str, Any]] = project.call(
        "from django_snapshots.models import Run\n"
        "answer = list(Run.objects.exclude(slot=None).order_by('created_at').values('slot', 'state', 'created_at'))"
    )
    return found if found and all(run["state"] not in ("queued", "running") for run in found) else []


@pytest.mark.parametrize("every", [timedelta(minutes=10), timedelta(days=1)])
def test_an_intervals_messages_are_told_apart_by_their_distance(
    rows: Any, monkeypatch: pytest.MonkeyPatch, every: timedelta
) -> None:
    rows({"tick": {"every": int(every.total_seconds())}})
    begin = timezone.now()

    def slot_after(share: float) -> str | None:
        monkeypatch.setattr(timezone, "now", lambda: begin + every * share)
        slot = slot_of("tick")
        Run.objects.get_or_create(slot=slot, defaults={"kind": Kind.SNAPSHOT})
        return slot

    shares = (0, 0.001, 0.4, 1, 1.3, 1.9, 3)
    assert [slot_after(share) for share in shares] == [f"tick#{number}" for number in (1, 1, 1, 2, 2, 3, 4)]
    assert slot_of("nobody's") is None


def test_a_crontabs_messages_carry_their_time(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows({"nightly": {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}})
    monkeypatch.setattr(timezone, "now", lambda: datetime(2026, 7, 1, 1, 0, 9, tzinfo=UTC))
    assert slot_of("nightly") == "nightly@2026-07-01T01:00:00+00:00"


def test_a_beat_that_reads_no_database_says_that_nothing_will_run(project: Project) -> None:
    project.schedules({"tick": {"every": 1}})
    with BeatProcess(project, "-S", "celery.beat:PersistentScheduler", "-s", str(project.directory / "own")) as beat:
        beat.says("Nothing of SNAPSHOTS['SCHEDULES'] will run")


def test_a_restored_database_has_the_schedules_of_today(project: Project) -> None:
    project.snapshots = {"ARTIFACTS": ["database"]}
    project.schedules({"old": {"every": 3600}})
    project.migrate()
    project.must("snapshots", "backup", "before")
    project.schedules({"new": {"every": 7200}})
    name = str(project.databases["default"]["NAME"])
    project.must("snapshots", "restore", "before", "--no-input", "--confirm", name)
    ours = [name for name in project.periodic_tasks() if name.startswith("snapshots: ")]
    assert sorted(ours) == ["snapshots: housekeeping", "snapshots: new"]
