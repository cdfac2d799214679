"""From a request and the settings to the steps of a run. Pure: reads no storage, no journal, no clock."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import quote

from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.manifest import check_name, is_reserved, plain_json
from django_snapshots.retention import Policy
from django_snapshots.storage.protocols import requires_advanced_storage
from django_snapshots.timetable import check_schedule_name

LEVELS = (1, 2, 3)
"""How deep a verify looks."""
DRILL_LEVEL = 4
"""What a drill proves, on the same scale."""
_SUBJECT_LENGTH = 120
_LONGEST_SUBJECT = 255
_TEMPLATE_LENGTH = 150
_LONGEST_WAIT = 7 * 86400
_RUN_ID = re.compile(r"[0-9A-Fa-f-]{6,36}")
_REQUEST_LISTS = ("databases", "artifacts", "confirm", "only")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody asked for, the same from a task, a command, the admin or code; plain JSON both ways."""

    name: str | None = None
    """A snapshot's name, or a template for a new one's; ``None`` is ``SNAPSHOTS["NAME"]``'s, or the latest to read."""
    databases: tuple[str, ...] | None = None
    """Aliases; ``None`` is all that the settings or the snapshot have."""
    artifacts: tuple[str, ...] | None = None
    """Artifact kinds; ``None`` is all that the settings or the snapshot have."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Goes into the manifest, beside ``SNAPSHOTS["METADATA"]``."""
    confirm: tuple[str, ...] = ()
    """The names of the targets that a restore may replace."""
    elsewhere: bool = False
    """Whether a restore may take a snapshot of another project or environment."""
    allow_empty: bool = False
    """Whether a snapshot may be empty where the one before wasn't."""
    level: int = 2
    """How deep a verify looks."""
    retention: Mapping[str, int] | bool | None = None
    """By what a prune prunes; ``None`` is ``SNAPSHOTS["RETENTION"]``. With it, a snapshot prunes its likes after it
    has succeeded; ``True`` means the settings' policy there."""
    like: str | None = None
    """The snapshot of whose likes a prune prunes; ``None`` is all."""
    dry_run: bool = False
    """Whether a prune only says what it would do."""
    only: tuple[str, ...] | None = None
    """The snapshots that a prune may delete, as somebody saw and confirmed them; ``None`` is all."""
    kept: bool = False
    """Whether a prune removes what restores have replaced, as far as its time is over, and no snapshots."""
    schedule: str | None = None
    """The schedule that asked."""
    wait: float = 0.0
    """Seconds that the run waits, at most, for another one that has what it needs; else it is refused at once."""
    into: Mapping[str, str] = field(default_factory=dict)
    """For an alias of the snapshot, the alias whose database a restore replaces instead."""
    database_names: Mapping[str, str] = field(default_factory=dict)
    """For an alias of the snapshot, the name of another database on the same server to restore into."""
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For an alias of the snapshot, the only tables whose rows a restore replaces; then nothing else is restored."""
    merge: bool = False
    """Whether a restore of media puts the snapshot's files among those that are there, instead of in their place."""
    migrate: bool = False
    """Whether a restore runs the migrations that the snapshot's databases lack."""
    no_owner: bool = False
    """Whether a restore leaves out owners and grants, on an engine that has them."""
    undo: str | None = None
    """The restore that an undo undoes, by its run's id or the beginning of it; ``None`` is the latest."""
    granted: bool = False
    """Whether somebody with the right to it has made this request in the journal; no task takes it as an argument."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for a task or the journal, without what is at its default."""
        data = asdict(self)
        defaults = asdict(type(self)())
        return {key: _plain(value) for key, value in data.items() if value != defaults[key]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Check *data*; raise ``SnapshotConfigurationError`` for anything that isn't a request."""
        if unknown := set(data) - set(cls.__dataclass_fields__):
            raise SnapshotConfigurationError(f"A request has no {', '.join(sorted(unknown))}.")
        lists: dict[str, Any] = {key: _names(key, data[key]) for key in _REQUEST_LISTS if data.get(key) is not None}
        name, metadata = data.get("name"), data.get("metadata") or {}
        if name is not None and not _is_template(name):
            check_name(name)
        if not isinstance(metadata, Mapping):
            raise SnapshotConfigurationError(f"metadata is a dict of plain JSON, not {metadata!r}.")
        metadata = plain_json(metadata, "A snapshot's metadata")
        level = data.get("level", 2)
        if level not in LEVELS or isinstance(level, bool):
            raise SnapshotConfigurationError(
                f"A verify's level is 1, 2 or 3, not {level!r}. What proves more is a drill: "
                "`manage.py snapshots drill`, or the task `drill`."
            )
        return cls(
            name=name,
            metadata=metadata,
            level=level,
            elsewhere=data.get("elsewhere") is True,
            allow_empty=data.get("allow_empty") is True,
            retention=_retention(data.get("retention")),
            like=None if data.get("like") is None else check_name(data["like"]),
            dry_run=data.get("dry_run") is True,
            kept=data.get("kept") is True,
            wait=_wait(data.get("wait")),
            granted=data.get("granted") is True,
            into=_pairs("into", data.get("into")),
            database_names=_pairs("database_names", data.get("database_names")),
            tables=_tables(data.get("tables")),
            merge=data.get("merge") is True,
            migrate=data.get("migrate") is True,
            no_owner=data.get("no_owner") is True,
            undo=_run_id(data.get("undo")),
            schedule=None if data.get("schedule") is None else check_schedule_name(data["schedule"]),
            **lists,
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _is_template(name: object) -> bool:
    """Whether *name* is filled in, and checked, when the snapshot is planned."""
    return isinstance(name, str) and "{" in name and len(name) <= _TEMPLATE_LENGTH


def _retention(value: object) -> Mapping[str, int] | bool | None:
    if value is None or value is False:
        return None
    return True if value is True else Policy.parse(value, "retention").to_json()


def _wait(value: object) -> float:
    if value is None or value is False:
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST_WAIT:
        return float(value)
    raise SnapshotConfigurationError(f"wait is a number of seconds, at most a week, not {value!r}.")


def _pairs(key: str, value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(item, str) and item for pair in value.items() for item in pair):
        return dict(value)
    raise SnapshotConfigurationError(f"{key} is a dict of an alias and a name each, not {value!r}.")


def _tables(value: object) -> Mapping[str, tuple[str, ...]]:
    """No tables of an alias is no request for all of them: it is refused."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(alias, str) for alias in value):
        raise SnapshotConfigurationError(f"tables is a dict of an alias and a list of tables each, not {value!r}.")
    tables = {alias: _names("tables", names) for alias, names in value.items()}
    if wrong := [alias for alias, names in tables.items() if not names or not all(names)]:
        raise SnapshotConfigurationError(f"tables names no table of {wrong[0]!r}; leave the alias out, or name some.")
    return tables


def _run_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and _RUN_ID.fullmatch(value):
        return value.lower().replace("-", "")
    raise SnapshotConfigurationError(f"A restore is named by its run's id, or the beginning of it, not by {value!r}.")


def _names(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return tuple(dict.fromkeys(value))
    raise SnapshotConfigurationError(f"{key} is a list of names, not {value!r}.")


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One artifact's share of a run."""

    position: int
    type: str
    subject: str
    phase: int
    """0 for databases; the others start when every database's moment is fixed, so that a file which a row points at
    is in the media that are walked afterwards."""


@dataclass(frozen=True, kw_only=True)
class SnapshotPlan:
    """What a snapshot run will do."""

    run: str
    """The run's id, 32 hex digits."""
    name: str
    steps: tuple[PlannedStep, ...]
    metadata: Mapping[str, Any]


def plan_snapshot(settings: Settings, request: Request, *, run: str, now: datetime) -> SnapshotPlan:
    """Plan a snapshot.

    Raises ``SnapshotConfigurationError`` for a request that the project can't fill, and
    ``SnapshotStorageCapabilityError`` for an archive in a storage of the basic tier.
    """
    if settings.format == "archive":
        requires_advanced_storage(settings.storage, 'SNAPSHOTS["FORMAT"] "archive"')
    return SnapshotPlan(
        run=run,
        name=_name(settings, request, now),
        steps=_steps(settings, request),
        metadata={**settings.metadata, **request.metadata},
    )


def _name(settings: Settings, request: Request, now: datetime) -> str:
    if request.name is None:
        return render_name(settings, now)
    if _is_template(request.name):
        return _fill_in(settings, request.name, now, "The name")
    return check_name(request.name)


def render_name(settings: Settings, now: datetime) -> str:
    """The name that ``SNAPSHOTS["NAME"]`` gives at *now*."""
    if callable(settings.name):
        return check_name(settings.name())
    return _fill_in(settings, settings.name, now, 'SNAPSHOTS["NAME"]')


def _fill_in(settings: Settings, template: str, now: datetime, what: str) -> str:
    try:
        return check_name(
            template.format(
                timestamp=timestamp(now),
                project=settings.project,
                environment=settings.environment,
                hostname=socket.gethostname(),
            )
        )
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise SnapshotConfigurationError(
            f"{what} {template!r} has a field that does not exist ({error}); "
            "the fields are {timestamp}, {project}, {environment} and {hostname}."
        ) from error


def timestamp(moment: datetime) -> str:
    """UTC, in the basic form of ISO 8601, to the microsecond: sorts as text and can be part of a name."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def has_timestamp(settings: Settings, request: Request) -> bool:
    """Whether another moment would give another name."""
    template = settings.name if request.name is None else request.name
    return isinstance(template, str) and "{timestamp}" in template


def next_moment(moment: datetime) -> datetime:
    """The next moment whose timestamp differs."""
    return moment + timedelta(microseconds=1)


def _steps(settings: Settings, request: Request) -> tuple[PlannedStep, ...]:
    steps: list[PlannedStep] = []
    if request.databases and "database" not in _types(settings, request):
        raise SnapshotConfigurationError(
            f"Databases are asked for ({', '.join(request.databases)}), but not the artifact 'database'."
        )
    for artifact_type in _types(settings, request):
        for subject in _subjects(settings, request, artifact_type):
            phase = 0 if artifact_type == "database" else 1
            steps.append(PlannedStep(position=len(steps), type=artifact_type, subject=subject, phase=phase))
    if not steps:
        raise SnapshotConfigurationError("There is nothing to snapshot: no alias and no other artifact is asked for.")
    return tuple(sorted(steps, key=lambda step: (step.phase, step.position)))


def _types(settings: Settings, request: Request) -> tuple[str, ...]:
    if request.artifacts is not None:
        return request.artifacts
    return settings.artifacts


def _subjects(settings: Settings, request: Request, artifact_type: str) -> Sequence[str]:
    offered = _offered(settings.kind(artifact_type))
    if artifact_type != "database" or request.databases is None:
        return offered
    for alias in request.databases:
        if alias not in offered:
            raise SnapshotConfigurationError(
                f"There is no database alias {alias!r} to snapshot; there is: {', '.join(offered)}."
            )
    return request.databases


def _offered(kind: ArtifactKind) -> Sequence[str]:
    """The subjects of a kind, which may be a project's own."""
    offered: Any = kind.subjects()
    if (
        isinstance(offered, str)
        or not isinstance(offered, Sequence)
        or not all(isinstance(item, str) and 0 < len(item) <= _LONGEST_SUBJECT for item in offered)
        or len(set(offered)) < len(offered)
    ):
        raise SnapshotConfigurationError(
            f"The subjects of the artifact kind {kind.type!r} must be a list of different names, not {offered!r}."
        )
    return tuple(offered)


def encoded_subject(subject: str) -> str:
    """*subject* as the beginning of a file's name: percent-encoded, never hidden, never the catalog's own."""
    encoded = quote(subject, safe="", errors="surrogatepass")
    if len(encoded) > _SUBJECT_LENGTH:
        # A name has room for 255 bytes, with the attempt's and what the connector adds.
        digest = hashlib.sha256(encoded.encode()).hexdigest()[:16]
        encoded = f"{encoded[: _SUBJECT_LENGTH - 17]}~{digest}"
    if encoded.startswith(".") or is_reserved(encoded):
        return f"%{ord(encoded[0]):02X}{encoded[1:]}"
    return encoded


def plain_filename(subject: str, suffix: str) -> str:
    """What an artifact is called once it is published."""
    return f"{encoded_subject(subject)}.{suffix}"


def attempt_filename(plan_run: str, position: int, token: int, subject: str, suffix: str) -> str:
    """What one attempt stores its artifact as: a name that no other run, step or attempt ever writes."""
    return f"{encoded_subject(subject)}.{plan_run}-{position}-{token}.{suffix}"
