"""Which snapshots a retention policy keeps: a pure function. Its definition is ``docs/reference/retention.md``.

Nothing here reads a storage, a journal or a clock. The policy counts snapshots and calendar periods that have one,
never ages: that time goes by deletes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotPreflightError
from django_snapshots.manifest import Snapshot, to_iso

CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of two hosts may differ."""

Group = frozenset[tuple[str, str]]
"""What a snapshot is a copy of: the type and subject of each of its artifacts."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How many snapshots of each group are kept."""

    keep_last: int = 0
    """So many of the newest."""
    keep_daily: int = 0
    """The newest of each of so many days that have one, the latest days first; and so on."""
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    minimum: int = 1
    """So many of the newest are kept, whatever the rules say; at least 1."""

    def to_json(self) -> dict[str, int]:
        """Plain JSON, without the rules that keep nothing."""
        return {key: value for key, value in asdict(self).items() if value}

    @classmethod
    def parse(cls, data: object, what: str) -> Self:
        """Check *data*; raise ``SnapshotConfigurationError`` that names *what* it is."""
        keys = tuple(cls.__dataclass_fields__)
        if not isinstance(data, Mapping):
            raise SnapshotConfigurationError(f"{what} must be a dict such as {{'keep_last': 7}}, not {data!r}.")
        if unknown := [str(key) for key in data if key not in keys]:
            raise SnapshotConfigurationError(f"{what} has no {', '.join(unknown)}; it has: {', '.join(keys)}.")
        for key, value in data.items():
            least = 1 if key == "minimum" else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SnapshotConfigurationError(f"{what}: {key} must be a whole number from {least}, not {value!r}.")
        if not any(value for key, value in data.items() if key != "minimum"):
            raise SnapshotConfigurationError(f"{what} keeps nothing: give at least one of {', '.join(keys[:-1])}.")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of one snapshot, and why."""

    name: str
    run: str
    """That of the snapshot that is meant; another one may get the name."""
    keep: bool
    reasons: tuple[str, ...]
    """At least one."""
    group: Group
    counted: bool = True
    """Whether it counts for its group; one that doesn't is always kept."""

    def to_json(self) -> dict[str, Any]:
        """For a task's result."""
        return {"name": self.name, "reasons": list(self.reasons)}


def group_of(snapshot: Snapshot) -> Group:
    """What *snapshot* is a copy of; snapshots of other artifacts or aliases never count for it."""
    return frozenset((artifact.type, artifact.subject) for artifact in snapshot.artifacts)


def decide(
    snapshots: Iterable[Snapshot],
    policy: Policy,
    *,
    now: datetime,
    timezone: tzinfo,
    uncounted: Mapping[str, str] | None = None,
) -> list[Decision]:
    """Decide about each of *snapshots*, the newest first.

    *timezone* is whose days, weeks, months and years are meant. *uncounted* maps names to the reason why a snapshot is
    kept without counting for anything: known to be damaged, of another project. Raises ``SnapshotPreflightError`` if
    one that counts is dated after *now*: then a clock is or was wrong, and which are the newest can't be told.
    """
    uncounted = uncounted or {}
    ordered = sorted(snapshots, key=_age_key, reverse=True)
    counted = [snapshot for snapshot in ordered if snapshot.name not in uncounted]
    _refuse_future(counted, now)
    kept = _kept_by_group(counted, policy, timezone)
    return [
        Decision(
            name=snapshot.name,
            run=snapshot.run,
            keep=snapshot.name in uncounted or snapshot.name in kept,
            reasons=_reasons(snapshot.name, kept, uncounted),
            group=group_of(snapshot),
            counted=snapshot.name not in uncounted,
        )
        for snapshot in ordered
    ]


def _age_key(snapshot: Snapshot) -> tuple[datetime, str]:
    return (snapshot.created_at, snapshot.name)


def _refuse_future(snapshots: list[Snapshot], now: datetime) -> None:
    future = [
        f"{snapshot.name} ({to_iso(snapshot.created_at)})"
        for snapshot in snapshots
        if snapshot.created_at > now + CLOCK_SKEW
    ]
    if future:
        raise SnapshotPreflightError(
            f"Nothing was deleted: it is {to_iso(now)} here, and dated later than that: {', '.join(future)}. Either "
            "this host's clock is wrong, or it was another host's; then delete these by name."
        )


def _reasons(name: str, kept: Mapping[str, list[str]], uncounted: Mapping[str, str]) -> tuple[str, ...]:
    if name in uncounted:
        return (uncounted[name],)
    return tuple(kept.get(name, ("no rule keeps it",)))


def _kept_by_group(counted: list[Snapshot], policy: Policy, timezone: tzinfo) -> dict[str, list[str]]:
    groups: dict[Group, list[Snapshot]] = {}
    for snapshot in counted:
        groups.setdefault(group_of(snapshot), []).append(snapshot)
    kept: dict[str, list[str]] = {}
    for members in groups.values():
        _keep(members, policy, timezone, kept)
    return kept


def _keep(members: list[Snapshot], policy: Policy, timezone: tzinfo, kept: dict[str, list[str]]) -> None:
    """Note in *kept* which of one group's *members*, the newest first, are kept and why."""
    for count, rule in ((policy.minimum, "minimum"), (policy.keep_last, "last")):
        for position, snapshot in enumerate(members[:count], start=1):
            kept.setdefault(snapshot.name, []).append(f"{rule} {position} of {count}")
    for count, rule, period in _periods(policy):
        seen: list[str] = []
        for snapshot in members:
            this = period(snapshot.created_at.astimezone(timezone))
            if this not in seen and len(seen) < count:
                seen.append(this)
                kept.setdefault(snapshot.name, []).append(f"{rule} {this}, {len(seen)} of {count}")


def _periods(policy: Policy) -> tuple[tuple[int, str, Callable[[datetime], str]], ...]:
    return (
        (policy.keep_daily, "day", lambda moment: moment.strftime("%Y-%m-%d")),
        (policy.keep_weekly, "week", lambda moment: moment.strftime("%G-W%V")),
        (policy.keep_monthly, "month", lambda moment: moment.strftime("%Y-%m")),
        (policy.keep_yearly, "year", lambda moment: moment.strftime("%Y")),
    )
