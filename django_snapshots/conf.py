"""``SNAPSHOTS``: one typed settings object, read when it is needed and never at import."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.db import connections

from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.artifacts.environment import EnvironmentArtifact
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.artifacts.media_root import media_root
from django_snapshots.artifacts.own import BUILT_IN, own_kind
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.manifest import plain_json
from django_snapshots.pipeline.compression import Compression, parse_compression
from django_snapshots.pluggable import imported, made
from django_snapshots.retention import Policy
from django_snapshots.storage.protocols import SnapshotStorage
from django_snapshots.timetable import Schedule, parse_schedules

KEYS = (
    "STORAGE",
    "DATABASE_CONNECTORS",
    "DATABASES",
    "ARTIFACTS",
    "FORMAT",
    "NAME",
    "COMPRESSION",
    "QUEUE",
    "PARALLEL",
    "PROJECT",
    "ENVIRONMENT",
    "METADATA",
    "ALLOW_RESTORE",
    "TEMPORARY_DIRECTORY",
    "EXCLUDE_DATA",
    "EMPTY",
    "RETENTION",
    "SCHEDULES",
    "LEASE",
    "ATTEMPTS",
    "STALL_LIMIT",
    "SWEEP_GRACE",
    "SAFETY_KEEP",
    "DRILL_CHECKS",
    "DRILL_DATABASES",
)
_NOT_BUILT = ("ENCRYPTION",)
_DJANGO_STORAGE = "django.core.files.storage.FileSystemStorage"
_BACKEND_KEY = 'SNAPSHOTS["STORAGE"]["BACKEND"]'
_LONGEST_SECONDS = 10 * 365 * 86400
_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a run is believed in."""

    lease: float = 60.0
    """Seconds without a sign of life after which a worker is given up."""
    attempts: int = 3
    """How often a step, or a finish, is begun before its run fails."""
    stall: float = 3600.0
    """Seconds without a byte after which a step is ended."""
    grace: float = 86400.0
    """Seconds after a run's end before what it left in the storage is removed."""
    safety_keep: float = 7 * 86400.0
    """Seconds that what a restore has replaced stays, so that the restore can be undone."""

    def sweep(self) -> float:
        """Seconds between two sweeps of the journal."""
        return min(60.0, self.lease)

    def heartbeat(self) -> float:
        """Seconds between two signs of life."""
        return min(2.0, self.lease / 4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``SNAPSHOTS``, checked. Every key is documented in ``docs/reference/settings.md``."""

    storage: SnapshotStorage
    database_connectors: Mapping[str, object] = field(default_factory=dict)
    databases: tuple[str, ...] | None = None
    """Aliases to include; ``None`` is every alias of ``DATABASES``."""
    artifacts: tuple[str, ...] = BUILT_IN
    """Kinds by their type."""
    own_kinds: Mapping[str, ArtifactKind] = field(default_factory=dict)
    """The project's own kinds, and ours that it has made itself, by their type."""
    format: str = "directory"
    name: str | Callable[[], str] = "{timestamp}"
    compression: Compression = field(default_factory=lambda: Compression(algorithm="zstd"))
    queue: str = "snapshots"
    parallel: int = 4
    """How many artifacts an inline run works on at once."""
    project: str = ""
    environment: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    allow_restore: bool | str = True
    """``"requested"``: only what somebody with the right has asked for in the journal."""
    temporary_directory: Path | None = None
    exclude_data: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By alias, the tables whose rows snapshots leave out."""
    empty: str = "refuse"
    """What becomes of a snapshot that is empty where the one before wasn't: ``"refuse"`` or ``"warn"``."""
    retention: Policy | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    limits: Limits = Limits()
    drill_checks: Mapping[str, Callable[[str], object]] = field(default_factory=dict)
    """By their dotted paths; each is called with the alias of a scratch database."""
    drill_databases: Mapping[str, str] = field(default_factory=dict)
    """For an alias that was dumped, the one through whose server a drill makes its scratch database."""

    def aliases(self) -> tuple[str, ...]:
        """The aliases that a snapshot includes."""
        return self.databases if self.databases is not None else tuple(connections)

    def data_left_out(self, artifact_type: str, subject: str) -> frozenset[str]:
        """The tables whose rows a dump of *subject* leaves out."""
        return self.exclude_data.get(subject, frozenset()) if artifact_type == "database" else frozenset()

    def kind(self, artifact_type: str) -> ArtifactKind:
        """The artifact kind of this type; raises ``SnapshotConfigurationError`` for one that does not exist."""
        own = self.own_kinds.get(artifact_type)
        if artifact_type == "database":
            return DatabaseArtifact(aliases=self.aliases(), connectors=self.database_connectors)
        if artifact_type == "media":
            media = own if isinstance(own, MediaArtifact) else MediaArtifact()
            _refuse_storage_in_media(self.storage, media)
            return media
        if own is not None:
            return own
        if artifact_type == "environment":
            return EnvironmentArtifact()
        kinds = ", ".join(dict.fromkeys((*BUILT_IN, *self.own_kinds)))
        raise SnapshotConfigurationError(f"There is no artifact kind {artifact_type!r}; there is: {kinds}.")


def get_settings() -> Settings:
    """Read and check ``SNAPSHOTS`` now.

    Raises ``SnapshotConfigurationError``, which is also Django's ``ImproperlyConfigured``.
    """
    raw = getattr(django_settings, "SNAPSHOTS", None)
    if not isinstance(raw, Mapping):
        raise SnapshotConfigurationError(
            "The setting SNAPSHOTS is missing. The least that it needs is where snapshots go: "
            'SNAPSHOTS = {"STORAGE": LocalFileSystemBackend(location="/srv/snapshots")}.'
        )
    _refuse_unknown(raw)
    artifacts, own_kinds = _artifacts(raw.get("ARTIFACTS", _default_artifacts()))
    return Settings(
        storage=_storage(raw.get("STORAGE")),
        database_connectors=_mapping(raw, "DATABASE_CONNECTORS"),
        databases=_aliases(raw.get("DATABASES")),
        artifacts=artifacts,
        own_kinds=own_kinds,
        format=_format(raw.get("FORMAT", "directory")),
        name=_name(raw.get("NAME", "{timestamp}")),
        compression=parse_compression(raw.get("COMPRESSION", {"algorithm": "zstd", "level": 3})),
        queue=_queue(raw.get("QUEUE", "snapshots")),
        parallel=_parallel(raw.get("PARALLEL", 4)),
        project=_text(raw, "PROJECT", _default_project()),
        environment=_text(raw, "ENVIRONMENT", ""),
        metadata=plain_json(_mapping(raw, "METADATA"), 'SNAPSHOTS["METADATA"]'),
        allow_restore=_allow_restore(raw.get("ALLOW_RESTORE", True)),
        temporary_directory=_directory(raw.get("TEMPORARY_DIRECTORY")),
        exclude_data=_exclude_data(raw),
        empty=_empty(raw.get("EMPTY", "refuse")),
        retention=_retention(raw),
        schedules=_schedules(raw),
        limits=_limits(raw),
        drill_checks=_drill_checks(raw.get("DRILL_CHECKS")),
        drill_databases=_drill_databases(_mapping(raw, "DRILL_DATABASES")),
    )


def get_queue() -> str:
    """The name of the queue alone, for the publisher of a task, which needs no storage."""
    return _queue((getattr(django_settings, "SNAPSHOTS", None) or {}).get("QUEUE", "snapshots"))


def get_limits() -> Limits:
    """The limits alone, for whoever looks at the journal, which needs no storage."""
    return _limits(getattr(django_settings, "SNAPSHOTS", None) or {})


def get_schedules() -> Mapping[str, Schedule] | None:
    """``SNAPSHOTS["SCHEDULES"]`` alone, for beat and ``migrate``, which need no storage; ``None`` without
    ``SNAPSHOTS``."""
    raw = getattr(django_settings, "SNAPSHOTS", None)
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise SnapshotConfigurationError("SNAPSHOTS must be a dict.")
    return _schedules(raw)


def _retention(raw: Mapping[str, Any]) -> Policy | None:
    value = raw.get("RETENTION")
    return None if value is None else Policy.parse(value, 'SNAPSHOTS["RETENTION"]')


def _schedules(raw: Mapping[str, Any]) -> Mapping[str, Schedule]:
    found = parse_schedules(
        raw.get("SCHEDULES"),
        timezone=django_settings.TIME_ZONE or "UTC",
        default_retention=_retention(raw) is not None,
    )
    for schedule in found.values():
        for alias in schedule.arguments.get("databases", ()):
            if alias not in connections:
                raise SnapshotConfigurationError(
                    f'SNAPSHOTS["SCHEDULES"]["{schedule.name}"] names {alias!r}, which is no key of DATABASES '
                    f"({', '.join(connections)})."
                )
    return found


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    for key in raw:
        if key in _NOT_BUILT and raw[key] is None:
            continue
        if key in _NOT_BUILT:
            raise SnapshotConfigurationError(
                f'SNAPSHOTS["{key}"] is not built into this version yet; leave it out or set it to None.'
            )
        if key not in KEYS:
            raise SnapshotConfigurationError(
                f"SNAPSHOTS has an unknown key {key!r}; the keys are: {', '.join(sorted((*KEYS, *_NOT_BUILT)))}."
            )


def _storage(value: object) -> SnapshotStorage:
    if isinstance(value, Mapping):
        value = _built_storage(value)
    # A class has the methods as well, and can do nothing with them.
    if isinstance(value, type) or not isinstance(value, SnapshotStorage):
        raise SnapshotConfigurationError(
            'SNAPSHOTS["STORAGE"] must be a storage, such as LocalFileSystemBackend(location="/srv/snapshots"), or '
            '{"BACKEND": "django_snapshots.storage.LocalFileSystemBackend", "OPTIONS": {"location": "..."}}; '
            f"a {type(value).__name__} lacks methods of SnapshotStorage."
        )
    return value


def _built_storage(value: Mapping[str, Any]) -> object:
    backend = value.get("BACKEND")
    if set(value) - {"BACKEND", "OPTIONS"} or not isinstance(backend, str):
        raise SnapshotConfigurationError('SNAPSHOTS["STORAGE"] takes "BACKEND", a dotted path, and "OPTIONS".')
    return made(imported(backend, _BACKEND_KEY), value.get("OPTIONS", {}), _BACKEND_KEY)


def storage_location(storage: SnapshotStorage) -> Path | None:
    """The real directory that *storage* keeps its objects in, or that its Django storage does; ``None`` if it is no
    directory of this machine, as far as it says."""
    location = getattr(storage, "location", None) or getattr(getattr(storage, "storage", None), "location", None)
    return Path(location).resolve() if isinstance(location, str | Path) else None


def _refuse_storage_in_media(storage: SnapshotStorage, artifact: MediaArtifact) -> None:
    """Snapshots below MEDIA_ROOT would be served, be part of the next snapshot, and be gone after a restore."""
    location = storage_location(storage)
    if location is None:
        return
    media = media_root(artifact.location).path
    if location.is_relative_to(media):
        raise SnapshotConfigurationError(
            f"The storage of the snapshots, {location}, lies inside MEDIA_ROOT, {media}. Move one of them."
        )


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise SnapshotConfigurationError(f'SNAPSHOTS["{key}"] must be a dict, not {value!r}.')
    return value


def _text(raw: Mapping[str, Any], key: str, default: str) -> str:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, str):
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["{key}"] must be text, not {value!r}.')


def _aliases(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise SnapshotConfigurationError('SNAPSHOTS["DATABASES"] must be None or a list of aliases.')
    for alias in value:
        if alias not in connections:
            raise SnapshotConfigurationError(
                f'SNAPSHOTS["DATABASES"] names {alias!r}, which is no key of DATABASES ({", ".join(connections)}).'
            )
    return tuple(dict.fromkeys(value))


def _default_artifacts() -> tuple[str, ...]:
    """All that is built in; without media in a project that says nothing of media files at all."""
    storage = getattr(django_settings, "STORAGES", {}).get("default", {})
    elsewhere = storage.get("BACKEND", _DJANGO_STORAGE) != _DJANGO_STORAGE or storage.get("OPTIONS")
    if django_settings.MEDIA_ROOT or elsewhere:
        return BUILT_IN
    return tuple(item for item in BUILT_IN if item != "media")


def _artifacts(value: object) -> tuple[tuple[str, ...], Mapping[str, ArtifactKind]]:
    """The types of all kinds, and the kinds that are the project's own."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise SnapshotConfigurationError('SNAPSHOTS["ARTIFACTS"] must be a list of artifact kinds.')
    types: list[str] = [item for item in value if item in BUILT_IN]
    own: dict[str, ArtifactKind] = {}
    for kind in [own_kind(item) for item in value if item not in BUILT_IN]:
        if kind.type in own or kind.type in types:
            raise SnapshotConfigurationError(f'SNAPSHOTS["ARTIFACTS"] has two kinds of the type {kind.type!r}.')
        own[kind.type] = kind
    return (*dict.fromkeys(types), *own), own


def _format(value: object) -> str:
    if value in ("directory", "archive") and isinstance(value, str):
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["FORMAT"] must be "directory" or "archive", not {value!r}.')


def _name(value: object) -> str | Callable[[], str]:
    if isinstance(value, str) and value:
        return value
    if callable(value):
        return value
    raise SnapshotConfigurationError('SNAPSHOTS["NAME"] must be a template such as "{timestamp}", or a callable.')


def _queue(value: object) -> str:
    if isinstance(value, str) and _QUEUE.fullmatch(value):
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["QUEUE"] must be the name of a queue, not {value!r}.')


def _parallel(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 64:
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["PARALLEL"] must be 1 to 64, not {value!r}.')


def _limits(raw: Mapping[str, Any]) -> Limits:
    return Limits(
        lease=_seconds(raw, "LEASE", Limits.lease, least=2),
        attempts=_count(raw.get("ATTEMPTS", Limits.attempts)),
        stall=_seconds(raw, "STALL_LIMIT", Limits.stall, least=1),
        grace=_seconds(raw, "SWEEP_GRACE", Limits.grace, least=0),
        safety_keep=_seconds(raw, "SAFETY_KEEP", Limits.safety_keep, least=0),
    )


def _seconds(raw: Mapping[str, Any], key: str, default: float, *, least: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _LONGEST_SECONDS:
        return float(value)
    raise SnapshotConfigurationError(f'SNAPSHOTS["{key}"] must be a number of seconds from {least}, not {value!r}.')


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100:
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["ATTEMPTS"] must be 1 to 100, not {value!r}.')


def _allow_restore(value: object) -> bool | str:
    if isinstance(value, bool) or value == "requested":
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["ALLOW_RESTORE"] must be True, False or "requested", not {value!r}.')


def _exclude_data(raw: Mapping[str, Any]) -> Mapping[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for alias, tables in _mapping(raw, "EXCLUDE_DATA").items():
        if alias not in connections:
            raise SnapshotConfigurationError(
                f'SNAPSHOTS["EXCLUDE_DATA"] names {alias!r}, which is no key of DATABASES ({", ".join(connections)}).'
            )
        if not isinstance(tables, list | tuple | set | frozenset) or not all(isinstance(item, str) for item in tables):
            raise SnapshotConfigurationError(
                f'SNAPSHOTS["EXCLUDE_DATA"]["{alias}"] must be a list of the names of tables, not {tables!r}.'
            )
        found[alias] = frozenset(tables)
    return found


def _empty(value: object) -> str:
    if value in ("refuse", "warn") and isinstance(value, str):
        return value
    raise SnapshotConfigurationError(f'SNAPSHOTS["EMPTY"] must be "refuse" or "warn", not {value!r}.')


def _directory(value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, str | Path) and Path(value).is_dir():
        return Path(value)
    raise SnapshotConfigurationError(f'SNAPSHOTS["TEMPORARY_DIRECTORY"] is not a directory: {value!r}.')


def _default_project() -> str:
    """The package of the settings module or of ``ROOT_URLCONF``: ``shop`` of ``shop.settings``."""
    urls = getattr(django_settings, "ROOT_URLCONF", None) or ""
    return str(urls).partition(".")[0]


def _drill_checks(value: object) -> Mapping[str, Callable[[str], object]]:
    where = 'SNAPSHOTS["DRILL_CHECKS"]'
    if value is None:
        return {}
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise SnapshotConfigurationError(f"{where} must be a list of dotted paths of functions, not {value!r}.")
    found = {path: imported(path, where) for path in value}
    for path, check in found.items():
        if not callable(check):
            raise SnapshotConfigurationError(f"{where} names {path!r}, which can't be called.")
    return found


def _drill_databases(value: Mapping[str, Any]) -> Mapping[str, str]:
    where = 'SNAPSHOTS["DRILL_DATABASES"]'
    for alias, scratch in value.items():
        if scratch not in connections:
            raise SnapshotConfigurationError(
                f"{where} has {alias!r}: {scratch!r}, which is no key of DATABASES ({', '.join(connections)})."
            )
        # An alias that the project no longer has may still be in a snapshot.
        if alias in connections and connections[alias].vendor != connections[scratch].vendor:
            raise SnapshotConfigurationError(
                f"{where}: {alias!r} is {connections[alias].vendor} and {scratch!r} is {connections[scratch].vendor}; "
                "a scratch database must be of the same engine."
            )
    return dict(value)
