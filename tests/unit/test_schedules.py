"""SNAPSHOTS["SCHEDULES"]: checked, and read by Celery as it was meant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab
from django_celery_beat.models import CrontabSchedule
from django_celery_beat.tzcrontab import TzAwareCrontab
from hypothesis import assume, given
from hypothesis import strategies as st

from django_snapshots.conf import get_schedules, get_settings
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.retention import Policy
from django_snapshots.schedules import _expiry, _last_time
from django_snapshots.testing import MemoryStorage
from django_snapshots.timetable import Cron, parse_cron

STORAGE = MemoryStorage()


@pytest.fixture
def schedules(settings):
    """``schedules(entries)`` sets SCHEDULES and reads it."""

    def read(entries, **more):
        settings.SNAPSHOTS = {"STORAGE": STORAGE, "SCHEDULES": entries, **more}
        assert get_settings().schedules == get_schedules()
        return get_settings().schedules

    return read


def test_two_lines_are_a_nightly_snapshot(schedules, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    (nightly,) = schedules({"nightly": {"cron": "0 3 * * *"}}).values()
    assert (nightly.task, nightly.enabled, nightly.arguments) == ("snapshot", True, {})
    assert str(nightly.when) == "0 3 * * * (Europe/Berlin)"


def test_every_key_is_taken(schedules):
    read = schedules(
        {
            "hourly.db": {
                "task": "snapshot",
                "every": {"hours": 1, "minutes": 30},
                "databases": ("default",),
                "artifacts": ["database"],
                "name": "hourly-{timestamp}",
                "metadata": {"team": "ops"},
                "retention": {"keep_last": 24},
                "enabled": False,
            },
            "weekly check": {"task": "verify", "cron": "30 4 * * sun", "timezone": "America/New_York", "level": 1},
            "prune": {"task": "prune", "every": 600},
            "tidy": {"task": "prune", "cron": "*/5 * * * *", "retention": {"keep_last": 3}},
            "like settings": {"every": 60, "retention": True},
        },
        RETENTION={"keep_last": 7, "minimum": 2},
    )
    assert read["hourly.db"].when == timedelta(minutes=90)
    assert not read["hourly.db"].enabled
    assert read["hourly.db"].arguments == {
        "databases": ["default"],
        "artifacts": ["database"],
        "name": "hourly-{timestamp}",
        "metadata": {"team": "ops"},
        "retention": {"keep_last": 24, "minimum": 1},
    }
    assert read["weekly check"].when.timezone == "America/New_York"
    assert read["prune"].arguments == {}
    assert read["like settings"].arguments == {"retention": True}
    assert get_settings().retention == Policy(keep_last=7, minimum=2)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (None, "must be a dict"),
        ({}, "cron"),
        ({"cron": "0 3 * * *", "every": 60}, "either"),
        ({"cron": "0 3 * *"}, "five fields"),
        ({"cron": 3}, "five fields"),
        ({"cron": "60 3 * * *"}, "minute"),
        ({"cron": "0 24 * * *"}, "hour"),
        ({"cron": "0 3 0 * *"}, "day of month"),
        ({"cron": "0 3 * 13 *"}, "month"),
        ({"cron": "0 3 * * 8"}, "day of week"),
        ({"cron": "0 3 * * noday"}, "day of week"),
        ({"cron": "0 3 * feb-jan *"}, "before it begins"),
        ({"cron": "0 22-4 * * *"}, "before it begins"),
        ({"cron": "*/0 3 * * *"}, "step"),
        ({"cron": "5/10 3 * * *"}, "step"),
        ({"cron": "0, 3 * * *"}, "minute"),
        ({"cron": "0 3 30 feb *"}, "no month has"),
        ({"cron": "0 3 1 * mon"}, "both"),
        ({"cron": "@daily"}, "five fields"),
        ({"cron": "0 3 * * *", "timezone": "Europe/Nowhere"}, "time zone"),
        ({"cron": "0 3 * * *", "timezone": ""}, "time zone"),
        ({"cron": "0 3 * * *", "timezone": None}, "time zone"),
        ({"cron": "0 3 * * *", "timezone": "../../etc/passwd"}, "time zone"),
        ({"every": 60, "timezone": "UTC"}, "timezone"),
        ({"every": 0}, "every"),
        ({"every": 0.5}, "every"),
        ({"every": True}, "every"),
        ({"every": "1h"}, "every"),
        ({"every": {}}, "every"),
        ({"every": {"weeks": 1}}, "every"),
        ({"every": {"hours": -1}}, "every"),
        ({"every": {"days": 10**12}}, "every"),
        ({"every": 60, "task": "restore"}, "task"),
        ({"every": 60, "task": ["snapshot"]}, "task"),
        ({"every": 60, "enabled": 1}, "enabled"),
        ({"every": 60, "queue": "slow"}, "queue"),
        ({"every": 60, "level": 1}, "level"),
        ({"every": 60, "task": "verify", "level": 4}, "level"),
        ({"every": 60, "task": "verify", "databases": ["default"]}, "databases"),
        ({"every": 60, "task": "prune"}, "RETENTION"),
        ({"every": 60, "retention": True}, "RETENTION"),
        ({"every": 60, "retention": {"keep": 3}}, "retention"),
        ({"every": 60, "databases": "default"}, "databases"),
        ({"every": 60, "databases": ["nowhere"]}, "nowhere"),
        ({"every": 60, "artifacts": []}, "artifacts"),
        ({"every": 60, "name": "nightly"}, "timestamp"),
        ({"every": 60, "name": ["{timestamp}"]}, "name"),
        ({"every": 60, "metadata": "x"}, "metadata"),
        ({"every": 60, "metadata": {"x": float("nan")}}, "plain JSON"),
    ],
    ids=str,
)
def test_each_wrong_entry_is_refused_with_its_name(schedules, entry, word):
    with pytest.raises(SnapshotConfigurationError, match=word) as caught:
        schedules({"nightly": entry})
    assert "nightly" in str(caught.value)


@pytest.mark.parametrize("name", ["", 7, "a" * 101, "ümlaut", "new\nline", " space"])
def test_a_name_that_no_row_should_have_is_refused(schedules, name):
    with pytest.raises(SnapshotConfigurationError, match="name of a schedule"):
        schedules({name: {"every": 60}})


@pytest.mark.parametrize("value", [[], "x", 7])
def test_schedules_are_a_dict(schedules, value):
    with pytest.raises(SnapshotConfigurationError, match="SCHEDULES"):
        schedules(value)


def test_without_the_key_there_are_none_and_without_snapshots_nothing_is_known(settings, schedules):
    assert schedules(None) == {}
    settings.SNAPSHOTS = None
    assert get_schedules() is None


# As Celery reads it


def celery_of(cron: Cron) -> crontab:
    return crontab(
        minute=cron.minute,
        hour=cron.hour,
        day_of_month=cron.day_of_month,
        month_of_year=cron.month,
        day_of_week=cron.day_of_week,
    )


@pytest.mark.parametrize(
    ("text", "written", "weekdays"),
    [
        ("*/20 8-18/2 * * mon-fri", "0,20,40 8,10,12,14,16,18 * * 1-5 (UTC)", {1, 2, 3, 4, 5}),
        ("0 3 * * 7", "0 3 * * 0 (UTC)", {0}),
        ("0 3 * * SAT-SUN", "0 3 * * 0,6 (UTC)", {0, 6}),
        ("0 3 * * 5-7", "0 3 * * 0,5-6 (UTC)", {0, 5, 6}),
        ("0 3 * * sun-tue", "0 3 * * 0-2 (UTC)", {0, 1, 2}),
        ("0 3 * * */3", "0 3 * * 0,3,6 (UTC)", {0, 3, 6}),
        ("0 3 * * 0-7", "0 3 * * * (UTC)", set(range(7))),
        ("0  3 1,15 Jan,jul *", "0 3 1,15 1,7 * (UTC)", set(range(7))),
        ("00 03 29 2 *", "0 3 29 2 * (UTC)", set(range(7))),
    ],
)
def test_a_cron_expression_is_written_as_celery_reads_it(text, written, weekdays):
    cron = parse_cron(text, "UTC", "x")
    assert str(cron) == written
    assert celery_of(cron).day_of_week == weekdays


@st.composite
def field(draw, low, high):
    def part():
        first, last = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
        step = draw(st.sampled_from(["", "/1", "/2", "/7"]))
        return draw(st.sampled_from([str(first), f"{first}-{last}{step}", f"*{step}"]))

    return ",".join(part() for _ in range(draw(st.integers(1, 3))))


@given(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6))
def test_whatever_is_accepted_means_the_same_to_celery(minute, hour, day, month, weekday):
    try:
        cron = parse_cron(f"{minute} {hour} {day} {month} {weekday}", "UTC", "x")
    except SnapshotConfigurationError:
        assume(False)
    assert celery_of(cron) == crontab(minute, hour, weekday, day, month)
    assert _expiry(cron) >= 60


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0 3 * * *", 86400),
        ("*/15 * * * *", 900),
        ("* * * * *", 60),
        ("0 3,5 * * *", 7200),
        ("0 3 * * mon", 7 * 86400),
        ("0 3 1 * *", 29 * 86400),
    ],
)
def test_a_message_is_void_when_the_next_one_comes(text, seconds):
    assert _expiry(parse_cron(text, "Europe/Berlin", "x")) == seconds


def test_an_intervals_message_lives_as_long_as_the_interval():
    assert _expiry(timedelta(hours=6)) == 21600
    assert _expiry(timedelta(seconds=1)) == 60


# The time that a message is for


def crontab_row(text: str, zone: str) -> CrontabSchedule:
    minute, hour, day, month, weekday = text.split()
    return CrontabSchedule(
        minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday, timezone=zone
    )


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


@pytest.mark.parametrize(
    ("text", "zone", "now", "slot"),
    [
        pytest.param("0 3 * * *", "UTC", "2026-03-01T03:00:05", "2026-03-01T03:00", id="on time"),
        pytest.param("0 3 * * *", "UTC", "2026-03-01T22:10:00", "2026-03-01T03:00", id="late"),
        pytest.param("0 3 * * *", "UTC", "2026-03-01T02:59:30", "2026-03-01T03:00", id="half a minute early"),
        pytest.param("0 3 * * *", "UTC", "2026-03-01T02:58:30", "2026-02-28T03:00", id="too early"),
        pytest.param("* * * * *", "UTC", "2026-03-01T03:00:40", "2026-03-01T03:00", id="every minute, late"),
        pytest.param("* * * * *", "UTC", "2026-03-01T03:00:50", "2026-03-01T03:01", id="every minute, early"),
        pytest.param("0 3-3 * * *", "Asia/Kathmandu", "2026-03-01T21:15:01", "2026-03-01T21:15", id="another zone"),
        pytest.param("0 3 * * 1", "America/New_York", "2026-07-06T07:00:01", "2026-07-06T07:00", id="its weekday"),
        pytest.param("0 0 29 2 *", "UTC", "2027-05-01T00:00:00", "2024-02-29T00:00", id="once in four years"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-03-29T01:30:05", "2026-03-29T01:30", id="an hour left out"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:05", "2026-03-28T01:30", id="before that hour"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:05", "2026-10-25T00:30", id="an hour twice"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-10-25T01:00:05", "2026-10-25T00:30", id="its repetition"),
        pytest.param("30 2 * * *", "Europe/Berlin", "2026-10-25T01:30:05", "2026-10-25T00:30", id="the second 02:30"),
    ],
)
def test_a_message_is_for_the_last_time_of_its_schedule(text, zone, now, slot):
    assert _last_time(crontab_row(text, zone), at(now)) == at(slot)


@pytest.mark.parametrize("text", ["30 2 * * *", "*/30 * * * *", "15 1,3 * * *"])
@pytest.mark.parametrize("begin", ["2026-03-28T20:00", "2026-10-24T20:00"])
def test_every_firing_of_beat_has_a_slot_of_its_own_whatever_the_clock_shows(text, begin):
    """As beat itself decides it, through both changes of the clock; each message may come a little early, or late."""
    moment = last = at(begin)
    minute, hour, *_ = text.split()
    times = TzAwareCrontab(minute=minute, hour=hour, tz=ZoneInfo("Europe/Berlin"))
    times.nowfun = lambda: moment
    fired = []
    while moment < at(begin) + timedelta(hours=36):
        if times.is_due(last).is_due:
            fired.append(moment)
            last = moment
        moment += timedelta(seconds=60)
    assert len(fired) > 1
    row = crontab_row(text, "Europe/Berlin")
    assert [_last_time(row, time) for time in fired] == fired
    for time, following in pairwise(fired):
        assert _last_time(row, time - timedelta(seconds=50)) == time
        assert _last_time(row, following - timedelta(seconds=70)) == time
        # It lies in the queue for most of the time until the next one.
        assert _last_time(row, time + (following - time) * 0.9) == time


def test_without_time_zones_a_slot_is_in_the_projects_own(settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    row = crontab_row("0 3 * * *", "Europe/Berlin")
    assert _last_time(row, datetime(2026, 7, 1, 3, 0, 5)) == datetime(2026, 7, 1, 1, tzinfo=UTC)
