"""``SNAPSHOTS["SCHEDULES"]`` as periodic tasks of django-celery-beat: written when beat starts, after ``migrate``, and
after a restore of the database that has them.

Each row carries in its ``headers`` whose it is and a digest of each setting that was written into it. So a field is
written only if its setting has changed since, and what an operator changed in the admin stays: a pause above all, a
new name too. As this lies in the row itself, it is right also after the database was restored. Rows without it are
somebody else's and never touched.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from celery import current_app
from celery.schedules import crontab
from celery.signals import beat_init
from django.apps import apps
from django.core import checks
from django.core.exceptions import ValidationError
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.db.models.signals import post_migrate
from django.utils import timezone

from django_snapshots import runs
from django_snapshots.conf import get_schedules
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import Run
from django_snapshots.timetable import HOUSEKEEPING, Cron, Schedule

if TYPE_CHECKING:
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

logger = logging.getLogger("django_snapshots")

SWEEP = Schedule(name=HOUSEKEEPING, task="sweep", when=timedelta(minutes=1))
"""Looks after the journal; in every project that has beat."""
HEADER = "django_snapshots"
"""The key in a row's ``headers`` that makes it ours."""
NAME_PREFIX = "snapshots: "
_TASK_PREFIX = "django_snapshots."
_LEAST_EXPIRY = 60
_EARLY = timedelta(minutes=1)
_LONGEST_GAP = timedelta(days=365 * 9)
"""Between two 29ths of February, of which a century may leave one out."""
_NOT_WRITTEN = "The schedules of SNAPSHOTS could not be written, those in the database stay as they are: %s"
_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def connect() -> None:
    """Have the schedules written when beat starts and after ``migrate``, and checked by ``manage.py check``."""
    if not apps.is_installed("django_celery_beat"):
        checks.register(check_installed, "snapshots")
        return
    beat_init.connect(_at_beat_start, dispatch_uid="django_snapshots.schedules", weak=False)
    config = apps.get_app_config("django_snapshots")
    post_migrate.connect(_after_migrate, sender=config, dispatch_uid="django_snapshots.schedules")
    checks.register(check_memory, "snapshots")


# When


def _at_beat_start(sender: Any, **_signal: Any) -> None:
    """Write before the first tick; beat goes on whatever becomes of it."""
    try:
        wanted = get_schedules()
        if wanted is None:
            return
        _say_what_beat_lacks(sender, wanted)
        _read_the_last_change(sender)
        write(wanted)
    except (SnapshotError, DatabaseError, ValidationError) as error:
        logger.warning(_NOT_WRITTEN, error)


def _say_what_beat_lacks(service: Any, wanted: Mapping[str, Schedule]) -> None:
    from django_celery_beat.schedulers import DatabaseScheduler

    if wanted and not isinstance(service.scheduler, DatabaseScheduler):
        logger.error(
            "Nothing of SNAPSHOTS['SCHEDULES'] will run: this beat has %s, which does not read the database. Start it "
            "with `-S django`, or set beat_scheduler to 'django_celery_beat.schedulers:DatabaseScheduler'.",
            type(service.scheduler).__name__,
        )


def _read_the_last_change(service: Any) -> None:
    """Beat notices a change by its time, and only after it has seen an earlier one; a new database has none."""
    from django_celery_beat.models import PeriodicTasks

    if PeriodicTasks.last_change() is None:
        PeriodicTasks.update_changed()
        _ = service.scheduler.schedule


def _after_migrate(using: str, **_signal: Any) -> None:
    write_in(using)


def write_in(using: str) -> None:
    """Write if beat's tables are in the database *using*; what stands in the way is logged."""
    if not apps.is_installed("django_celery_beat"):
        return
    from django_celery_beat.models import PeriodicTask

    if router.db_for_write(PeriodicTask) != using or not _tables_are_there(using):
        return
    try:
        wanted = get_schedules()
        if wanted is not None:
            write(wanted)
    except (SnapshotError, DatabaseError, ValidationError) as error:
        logger.warning(_NOT_WRITTEN, error)


def _tables_are_there(alias: str) -> bool:
    connection = connections[alias]
    with connection.cursor() as cursor:
        found = set(connection.introspection.table_names(cursor))
    return {model._meta.db_table for model in apps.get_app_config("django_celery_beat").get_models()} <= found


# What


def write(wanted: Mapping[str, Schedule]) -> None:
    """Bring our rows in line with *wanted*, in one transaction: make, change, remove."""
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    wanted = {**wanted, SWEEP.name: SWEEP}
    with transaction.atomic(using=router.db_for_write(PeriodicTask)):
        ours = dict(_ours())
        changed = [_remove(row) for name, row in ours.items() if name not in wanted]
        changed += [_write_one(schedule, ours.get(name)) for name, schedule in wanted.items()]
        if any(changed):
            PeriodicTasks.update_changed()


def _ours(*, lock: bool = True) -> Iterator[tuple[str, PeriodicTask]]:
    from django_celery_beat.models import PeriodicTask

    rows = PeriodicTask.objects.using(router.db_for_write(PeriodicTask)).filter(task__startswith=_TASK_PREFIX)
    rows = rows.select_for_update() if lock else rows.select_related("crontab", "interval")
    for row in rows.order_by("pk"):
        name = _mark(row).get("schedule")
        if isinstance(name, str):
            yield name, row
        elif row.name.startswith(NAME_PREFIX):
            # Somebody has emptied its headers; its name and task still say that we made it.
            yield row.name.removeprefix(NAME_PREFIX), row


def _headers(row: PeriodicTask) -> dict[str, Any]:
    try:
        headers = json.loads(row.headers or "{}")
    except ValueError:
        return {}
    return headers if isinstance(headers, dict) else {}


def _mark(row: PeriodicTask) -> dict[str, Any]:
    mark = _headers(row).get(HEADER)
    return mark if isinstance(mark, dict) else {}


def _remove(row: PeriodicTask) -> bool:
    row.delete()
    return True


def _write_one(schedule: Schedule, row: PeriodicTask | None) -> bool:
    """Write each field whose setting isn't the one that was written last; whether there was any."""
    settings = {key: _digest(value) for key, value in _settings(schedule).items()}
    if row is None:
        row = _new_row(schedule)
        if row is None:
            return False
    written = _mark(row).get("written")
    written = written if isinstance(written, dict) else {}
    changed = [key for key, digest in settings.items() if written.get(key) != digest]
    if not changed:
        return False
    _fill(row, schedule, changed, adopted=row.pk is not None and not written)
    row.headers = json.dumps({**_headers(row), HEADER: {"schedule": schedule.name, "written": settings}})
    row.save(using=router.db_for_write(row))
    return True


def _settings(schedule: Schedule) -> dict[str, str]:
    return {
        "task": schedule.task,
        "when": str(schedule.when),
        "arguments": json.dumps(schedule.arguments, sort_keys=True),
        "enabled": str(schedule.enabled),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _new_row(schedule: Schedule) -> PeriodicTask | None:
    from django_celery_beat.models import PeriodicTask

    name = f"{NAME_PREFIX}{schedule.name}"
    if PeriodicTask.objects.using(router.db_for_write(PeriodicTask)).filter(name=name).exists():
        logger.error(
            "The schedule %r is not written: there is a periodic task %r of somebody else; rename one of them.",
            schedule.name,
            name,
        )
        return None
    return PeriodicTask(name=name, description=f"From SNAPSHOTS['SCHEDULES'][{schedule.name!r}].")


def _fill(row: PeriodicTask, schedule: Schedule, changed: list[str], *, adopted: bool) -> None:
    if "task" in changed:
        row.task = f"{_TASK_PREFIX}{schedule.task}"
    if "arguments" in changed:
        row.kwargs = json.dumps({**schedule.arguments, "schedule": schedule.name})
    # Whoever emptied the headers of a row did not mean to start what was paused.
    if "enabled" in changed and not adopted:
        row.enabled = schedule.enabled
    if "when" in changed:
        row.crontab = _crontab(schedule.when) if isinstance(schedule.when, Cron) else None
        row.interval = _interval(schedule.when) if isinstance(schedule.when, timedelta) else None
        row.solar = row.clocked = None
        row.expires, row.expire_seconds = None, _expiry(schedule.when)
        # A new time holds from now on: the old one's last run says nothing about what this one has missed.
        row.last_run_at = timezone.now() if row.pk is not None else None


def _crontab(cron: Cron) -> CrontabSchedule:
    """A row with this time; one that is there already is used as it is."""
    from django_celery_beat.models import CrontabSchedule

    # Beat leaves out of its schedule what has a plain number as its hour, until two hours before it: what was missed
    # while it was down is then made good at the wrong time, and repeated at the right one. A range is always looked at.
    hour = f"{cron.hour}-{cron.hour}" if cron.hour.isdecimal() else cron.hour
    fields: dict[str, Any] = {
        "minute": cron.minute,
        "hour": hour,
        "day_of_month": cron.day_of_month,
        "month_of_year": cron.month,
        "day_of_week": cron.day_of_week,
        "timezone": ZoneInfo(cron.timezone),
    }
    rows = CrontabSchedule.objects.using(router.db_for_write(CrontabSchedule))
    return rows.filter(**fields).order_by("pk").first() or rows.create(**fields)


def _interval(every: timedelta) -> IntervalSchedule:
    from django_celery_beat.models import IntervalSchedule

    seconds = int(every.total_seconds())
    unit, size = next((unit, size) for unit, size in _UNITS if seconds % size == 0)
    rows = IntervalSchedule.objects.using(router.db_for_write(IntervalSchedule))
    fields: dict[str, Any] = {"every": seconds // size, "period": unit}
    return rows.filter(**fields).order_by("pk").first() or rows.create(**fields)


def _expiry(when: Cron | timedelta) -> int:
    """Seconds after which a message that no worker has taken is void: when the next one comes.

    Otherwise workers that were down for a week would take seven snapshots one after the other.
    """
    if isinstance(when, timedelta):
        return max(_LEAST_EXPIRY, int(when.total_seconds()))
    return max(_LEAST_EXPIRY, int(_shortest_gap(when).total_seconds()))


def _shortest_gap(cron: Cron) -> timedelta:
    """The shortest time between two of the next runs."""
    moment = datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))
    times = crontab(
        minute=cron.minute,
        hour=cron.hour,
        day_of_month=cron.day_of_month,
        month_of_year=cron.month,
        day_of_week=cron.day_of_week,
        nowfun=lambda: moment,
    )
    moments: list[datetime] = []
    for _ in range(8):
        last, delta, _now = times.remaining_delta(moments[-1] if moments else moment, tz=ZoneInfo("UTC"))
        moments.append(last + delta)
    return min(later - earlier for earlier, later in pairwise(moments))


# Which time a message is for


def slot_of(schedule: str) -> str | None:
    """The time that a message of *schedule* is for, the same for every message of that time; ``None`` if it can't be
    told, because beat has no such row.

    Two beats, or one that fires twice, send two messages; a unique column makes one run of them. The message doesn't
    say what time it is for. With a crontab that is the last one, where a minute early is on time: clocks of two hosts
    differ. An interval has no times, only distances: what comes within half of one belongs to the last run.
    """
    if not apps.is_installed("django_celery_beat"):
        return None
    row = next((row for name, row in _ours(lock=False) if name == schedule), None)
    if row is None:
        return None
    if row.crontab is not None:
        return f"{schedule}@{_last_time(row.crontab, timezone.now()).isoformat()}"
    return _next_number(schedule, timedelta(**{row.interval.period: row.interval.every})) if row.interval else None


def _last_time(cron: CrontabSchedule, now: datetime) -> datetime:
    """The last time of *cron* that isn't later than *now*, or is so by less than a minute and a quarter of the gap."""
    times = crontab(
        minute=cron.minute,
        hour=cron.hour,
        day_of_month=cron.day_of_month,
        month_of_year=cron.month_of_year,
        day_of_week=cron.day_of_week,
        nowfun=lambda: now,
    )
    zone, utc = ZoneInfo(str(cron.timezone)), ZoneInfo("UTC")
    # In UTC: two times of one zone are compared by what the clock shows, which goes back by an hour once a year.
    now = (now if timezone.is_aware(now) else now.replace(tzinfo=timezone.get_current_timezone())).astimezone(utc)

    def after(moment: datetime) -> datetime:
        last, delta, _now = times.remaining_delta(moment.astimezone(zone), tz=zone)
        following: datetime = last + delta
        return following.astimezone(utc)

    back = timedelta(hours=1)
    while (found := after(now - back)) > now and back < _LONGEST_GAP:
        back *= 4
    while (following := after(found)) <= now + min(_EARLY, (following - found) / 4):
        found = following
    return found


def _next_number(schedule: str, every: timedelta) -> str:
    prefix = f"{schedule}#"
    last = Run.objects.using(runs.alias()).filter(slot__startswith=prefix).order_by("-created_at").first()
    if last is None or last.slot is None:
        return f"{prefix}1"
    is_same = timezone.now() - last.created_at < every / 2
    return last.slot if is_same else f"{prefix}{int(last.slot.removeprefix(prefix)) + 1}"


# Checks


def check_installed(**_options: Any) -> list[checks.CheckMessage]:
    """Schedules need django-celery-beat."""
    if not _wanted():
        return []
    return [
        checks.Error(
            'SNAPSHOTS["SCHEDULES"] is set, but django_celery_beat is not in INSTALLED_APPS: nothing would run.',
            hint='Add "django_celery_beat" to INSTALLED_APPS and migrate.',
            id="snapshots.E020",
        )
    ]


def check_memory(**_options: Any) -> list[checks.CheckMessage]:
    """Beat should write down what it has sent; can be told where the project's Celery app is loaded with Django."""
    if not _wanted() or current_app.main == "default" or current_app.conf.beat_sync_every == 1:
        return []
    return [
        checks.Warning(
            "A beat that is killed forgets the runs of its last minutes, and repeats them when it starts again.",
            hint="Set Celery's beat_sync_every to 1 (CELERY_BEAT_SYNC_EVERY = 1).",
            id="snapshots.W020",
        )
    ]


def _wanted() -> bool:
    try:
        return bool(get_schedules())
    except SnapshotError:
        return False  # the check of all settings says it
