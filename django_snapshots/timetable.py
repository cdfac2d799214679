"""``SNAPSHOTS["SCHEDULES"]``, typed and checked: what is to be done when. Pure; what becomes of it is ``schedules.py``.

A cron expression is accepted only where cron, Celery and a reader agree on its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.manifest import plain_json
from django_snapshots.retention import Policy

TASKS: Mapping[str, tuple[str, ...]] = {
    "snapshot": ("name", "databases", "artifacts", "metadata", "retention"),
    "verify": ("name", "level"),
    "drill": ("name",),
    "prune": ("retention",),
}
"""The tasks that can be scheduled, each with the arguments that its schedule may have."""

HOUSEKEEPING = "housekeeping"
"""The name of the schedule that looks after the journal; no other may have it."""
NAME_LENGTH = 100
KEYS = ("task", "cron", "timezone", "every", "enabled")
_NAME = re.compile(rf"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{{0,{NAME_LENGTH - 2}}}[A-Za-z0-9._-])?")
_UNITS = ("days", "hours", "minutes", "seconds")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?:(\*)|([0-9]{1,2}|[A-Za-z]{3})(?:-([0-9]{1,2}|[A-Za-z]{3}))?)(?:/([0-9]{1,2}))?")


@dataclass(frozen=True, kw_only=True)
class Cron:
    """Five fields, as text that Celery's crontab reads, and the time zone of their wall clock."""

    minute: str
    hour: str
    day_of_month: str
    month: str
    day_of_week: str
    timezone: str

    def __str__(self) -> str:
        return f"{self.minute} {self.hour} {self.day_of_month} {self.month} {self.day_of_week} ({self.timezone})"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One entry of ``SNAPSHOTS["SCHEDULES"]``."""

    name: str
    task: str
    """A key of ``TASKS``."""
    when: Cron | timedelta
    enabled: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the task is called with, plain JSON."""


def parse_schedules(value: object, *, timezone: str, default_retention: bool) -> dict[str, Schedule]:
    """Check ``SNAPSHOTS["SCHEDULES"]``; raise ``SnapshotConfigurationError`` that names the schedule and key.

    *timezone* is the default one; *default_retention* is whether the settings have a ``RETENTION``.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SnapshotConfigurationError(
            'SNAPSHOTS["SCHEDULES"] must be a dict such as {"nightly": {"cron": "0 3 * * *"}}.'
        )
    return {name: _schedule(name, entry, timezone, default_retention) for name, entry in value.items()}


def check_schedule_name(name: object) -> str:
    """Return *name* if a schedule may be called so, else raise ``SnapshotConfigurationError``."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise SnapshotConfigurationError(
        f"{name!r} can't be the name of a schedule: use up to {NAME_LENGTH} letters, digits, spaces, '.', '_' and '-'."
    )


def _schedule(name: object, entry: object, timezone: str, default_retention: bool) -> Schedule:
    if check_schedule_name(name) == HOUSEKEEPING:
        raise SnapshotConfigurationError(
            f'SNAPSHOTS["SCHEDULES"] must not name one {HOUSEKEEPING!r}: that looks after the journal.'
        )
    where = f'SNAPSHOTS["SCHEDULES"]["{name}"]'
    if not isinstance(entry, Mapping):
        raise SnapshotConfigurationError(f'{where} must be a dict such as {{"cron": "0 3 * * *"}}, not {entry!r}.')
    task = entry.get("task", "snapshot")
    if not isinstance(task, str) or task not in TASKS:
        raise SnapshotConfigurationError(f'{where}["task"] must be one of {", ".join(TASKS)}, not {task!r}.')
    allowed = (*KEYS, *TASKS[task])
    if unknown := [str(key) for key in entry if key not in allowed]:
        raise SnapshotConfigurationError(
            f"{where} has {', '.join(unknown)}, which a {task} does not take; it takes: {', '.join(allowed)}."
        )
    enabled = entry.get("enabled", True)
    if not isinstance(enabled, bool):
        raise SnapshotConfigurationError(f'{where}["enabled"] must be True or False, not {enabled!r}.')
    return Schedule(
        name=str(name),
        task=task,
        when=_when(entry, where, timezone),
        enabled=enabled,
        arguments=_arguments(entry, task, where, default_retention),
    )


# When


def _when(entry: Mapping[str, Any], where: str, timezone: str) -> Cron | timedelta:
    if ("cron" in entry) == ("every" in entry):
        raise SnapshotConfigurationError(f'{where} needs either "cron" or "every".')
    if "every" in entry:
        if "timezone" in entry:
            raise SnapshotConfigurationError(f'{where}: "timezone" goes with "cron"; an interval has none.')
        return _every(entry["every"], f'{where}["every"]')
    zone = entry.get("timezone", timezone)
    try:
        ZoneInfo(zone)
    except (LookupError, ValueError, TypeError, OSError) as error:
        raise SnapshotConfigurationError(
            f'{where}["timezone"] must be a time zone such as "Europe/Berlin", not {zone!r}.'
        ) from error
    return parse_cron(entry["cron"], zone, f'{where}["cron"]')


def _every(value: object, where: str) -> timedelta:
    wrong = SnapshotConfigurationError(
        f'{where} must be a whole number of seconds from 1, or a dict such as {{"hours": 6}} with '
        f"{', '.join(_UNITS)}, not {value!r}."
    )
    parts = value if isinstance(value, Mapping) else {"seconds": value}
    if not parts or any(key not in _UNITS or not _is_count(count) for key, count in parts.items()):
        raise wrong
    try:
        interval = timedelta(**parts)
    except OverflowError:
        raise wrong from None
    if not timedelta(seconds=1) <= interval <= timedelta(days=3660):
        raise wrong
    return interval


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def parse_cron(text: object, timezone: str, where: str) -> Cron:
    """Five fields, each a list of numbers, ranges and steps; months and weekdays also by their first three letters."""
    fields = text.split() if isinstance(text, str) else ()
    if len(fields) != 5:
        raise SnapshotConfigurationError(
            f'{where} must have five fields, minute, hour, day of month, month and day of week, such as "0 3 * * *", '
            f"not {text!r}."
        )
    minutes = _numbers(fields[0], 0, 59, (), f"{where}, minute")
    hours = _numbers(fields[1], 0, 23, (), f"{where}, hour")
    days = _numbers(fields[2], 1, 31, (), f"{where}, day of month")
    months = _numbers(fields[3], 1, 12, _MONTHS, f"{where}, month")
    weekdays = {number % 7 for number in _numbers(fields[4], 0, 7, _DAYS, f"{where}, day of week")}
    if len(days) < 31 and len(weekdays) < 7:
        raise SnapshotConfigurationError(
            f"{where} {text!r} has both a day of month and a day of week: cron runs when either fits, Celery when both "
            "do. Give one of them, or two schedules."
        )
    if not any(day <= _LONGEST[month - 1] for month in months for day in days):
        raise SnapshotConfigurationError(f"{where} {text!r} is a day that no month has.")
    return Cron(
        minute=_text(minutes, 0, 59),
        hour=_text(hours, 0, 23),
        day_of_month=_text(days, 1, 31),
        month=_text(months, 1, 12),
        day_of_week=_text(weekdays, 0, 6),
        timezone=timezone,
    )


def _numbers(text: str, low: int, high: int, names: Sequence[str], where: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise SnapshotConfigurationError(f"{where}: {part!r} is no number, range or step from {low} to {high}.")
        star, first, last, step = match.groups()
        if step is not None and (int(step) == 0 or not (star or last)):
            raise SnapshotConfigurationError(f"{where}: {part!r}: a step of 1 or more follows '*' or a range.")
        begin, end = (low, high) if star else (_number(first, low, high, names, where),) * 2
        if star and names is _DAYS:
            end = 6
        if last is not None:
            end = _number(last, low, high, names, where)
            end = 7 if names is _DAYS and end == 0 < begin else end
        if end < begin:
            raise SnapshotConfigurationError(f"{where}: {part!r} ends before it begins.")
        found.update(range(begin, end + 1, int(step or 1)))
    return found


def _number(text: str, low: int, high: int, names: Sequence[str], where: str) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + (low if names is _MONTHS else 0)
    if text.isdecimal() and low <= int(text) <= high:
        return int(text)
    raise SnapshotConfigurationError(f"{where}: {text!r} is not from {low} to {high}.")


def _text(numbers: set[int], low: int, high: int) -> str:
    """The shortest of a star, and a list with ranges."""
    if numbers == set(range(low, high + 1)):
        return "*"
    return ",".join(_ranges(sorted(numbers)))


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    start = previous = numbers[0]
    for number in (*numbers[1:], -1):
        if number == previous + 1:
            previous = number
            continue
        yield str(start) if start == previous else f"{start}-{previous}"
        start = previous = number


# What


def _arguments(entry: Mapping[str, Any], task: str, where: str, default_retention: bool) -> dict[str, Any]:
    given = {key: entry[key] for key in TASKS[task] if entry.get(key) is not None}
    if "retention" in given:
        given["retention"] = _retention(given["retention"], where, default_retention)
    elif task == "prune" and not default_retention:
        raise SnapshotConfigurationError(f'{where} prunes by nothing: give it a "retention", or set RETENTION.')
    if task == "snapshot" and "name" in given and "{timestamp}" not in str(given["name"]):
        raise SnapshotConfigurationError(
            f'{where}["name"] must have {{timestamp}} in it, such as "nightly-{{timestamp}}": a name can be used once.'
        )
    for key in ("databases", "artifacts"):
        if key in given:
            given[key] = _names(given[key], f'{where}["{key}"]')
    if given.get("level", 2) not in (1, 2, 3) or isinstance(given.get("level"), bool):
        raise SnapshotConfigurationError(
            f'{where}["level"] must be 1, 2 or 3, not {given["level"]!r}; what proves more is the task "drill".'
        )
    if not isinstance(given.get("metadata", {}), Mapping):
        raise SnapshotConfigurationError(f'{where}["metadata"] must be a dict, not {given["metadata"]!r}.')
    if not isinstance(given.get("name", ""), str):
        raise SnapshotConfigurationError(f'{where}["name"] must be text, not {given["name"]!r}.')
    return plain_json(given, where)


def _names(value: object, where: str) -> list[str]:
    items = value if isinstance(value, list | tuple) else ()
    if items and all(isinstance(item, str) for item in items):
        return list(dict.fromkeys(items))
    raise SnapshotConfigurationError(f"{where} must be a list of names, not {value!r}.")


def _retention(value: object, where: str, default_retention: bool) -> object:
    if value is True:
        if not default_retention:
            raise SnapshotConfigurationError(f'{where}["retention"] is True, but there is no SNAPSHOTS["RETENTION"].')
        return True
    return Policy.parse(value, f'{where}["retention"]').to_json()
