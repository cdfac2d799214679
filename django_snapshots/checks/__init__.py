"""Django's system checks for ``SNAPSHOTS``: what can't work or would hurt, and what to write instead.

They read settings and models, and neither a database nor a storage. Each is described in
``docs/reference/checks.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django calls it so
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models import Field, ForeignKey, Model

from django_snapshots.artifacts.media_root import media_root
from django_snapshots.checks.workers import check_deployment, check_workers
from django_snapshots.conf import Settings, get_settings, storage_location
from django_snapshots.connectors.auto import connector_for
from django_snapshots.exceptions import SnapshotError
from django_snapshots.storage.protocols import AdvancedSnapshotStorage

TAG = "snapshots"
_APP = "django_snapshots"

Check = Callable[[Settings], Iterator[CheckMessage]]


def connect() -> None:
    """Register the checks, from ``AppConfig.ready``."""
    register(check_settings, TAG)
    register(check_foreign_keys, TAG)
    register(check_workers, TAG)
    register(check_deployment, TAG, deploy=True)


def check_settings(**_options: object) -> list[CheckMessage]:
    """All that can be told from ``SNAPSHOTS`` and Django's own settings."""
    try:
        settings = get_settings()
    except (SnapshotError, ImproperlyConfigured) as error:
        return [Error(str(error), hint="See docs/reference/settings.md.", id="snapshots.E001")]
    except Exception as error:  # noqa: BLE001 - a storage or kind of somebody else's raises what it likes
        said = f"SNAPSHOTS can't be read: {type(error).__name__}: {error}"
        return [Error(said, hint="Its storage and artifact kinds are made when it is read.", id="snapshots.E001")]
    checks: tuple[Check, ...] = (_format, _place, _media, _connectors, _names)
    return [message for check in checks for message in check(settings)]


def _format(settings: Settings) -> Iterator[CheckMessage]:
    if settings.format == "archive" and not isinstance(settings.storage, AdvancedSnapshotStorage):
        yield Error(
            f'SNAPSHOTS["FORMAT"] is "archive", and {type(settings.storage).__name__} is a storage of the basic tier.',
            hint='Use "FORMAT": "directory", or a storage of the advanced tier such as LocalFileSystemBackend.',
            id="snapshots.E002",
        )


def _place(settings: Settings) -> Iterator[CheckMessage]:
    if _is_relative():
        yield Warning(
            'The location of SNAPSHOTS["STORAGE"] is relative, so that each process looks for snapshots in the '
            "directory that it was started in.",
            hint="Write an absolute path.",
            id="snapshots.W001",
        )
    location = storage_location(settings.storage)
    if location is None:
        return
    media = django_settings.MEDIA_ROOT
    if media and location.is_relative_to(Path(media).resolve()):
        yield Error(
            f"The storage of the snapshots, {location}, lies inside MEDIA_ROOT, {media}: snapshots would be served, be "
            "part of the next one, and be gone after a restore.",
            hint="Move one of them.",
            id="snapshots.E003",
        )
    for name, root in _static_roots():
        if location.is_relative_to(root):
            yield Warning(
                f"The storage of the snapshots, {location}, lies below {name}, {root}, which is served to everybody.",
                hint="Move the storage to a directory of its own.",
                id="snapshots.W002",
            )


def _is_relative() -> bool:
    storage: Any = django_settings.SNAPSHOTS.get("STORAGE")
    options = storage.get("OPTIONS") if isinstance(storage, Mapping) else None
    location: Any = options.get("location") if isinstance(options, Mapping) else None
    return isinstance(location, str | Path) and not Path(location).is_absolute()


def _static_roots() -> Iterator[tuple[str, Path]]:
    root, directories = django_settings.STATIC_ROOT, cast(list[Any], django_settings.STATICFILES_DIRS)
    if root:
        yield "STATIC_ROOT", Path(root).resolve()
    for item in directories:
        # An entry may be a pair of a prefix and a directory.
        yield "STATICFILES_DIRS", Path(item[1] if isinstance(item, list | tuple) else item).resolve()


def _media(settings: Settings) -> Iterator[CheckMessage]:
    if "media" not in settings.artifacts:
        return
    location: Any = getattr(settings.own_kinds.get("media"), "location", None)
    try:
        media_root(location)
    except SnapshotError as error:
        # Perhaps only on this machine, where nobody takes snapshots.
        yield Warning(
            f"A snapshot of the media files would fail here. {error}",
            hint='Set MEDIA_ROOT, or leave "media" out of SNAPSHOTS["ARTIFACTS"].',
            id="snapshots.W003",
        )


def _names(settings: Settings) -> Iterator[CheckMessage]:
    prunes = settings.retention is not None or any(
        "retention" in item.arguments for item in settings.schedules.values()
    )
    if prunes and not {"PROJECT", "ENVIRONMENT"} & set(django_settings.SNAPSHOTS):
        # Staging and production are often one code base with one name.
        yield Warning(
            f"A prune takes every snapshot of the project {settings.project!r} in its storage, and so does every other "
            "installation that goes by this name, which it has from ROOT_URLCONF.",
            hint='Say who this is: SNAPSHOTS["ENVIRONMENT"], such as "production", or SNAPSHOTS["PROJECT"].',
            id="snapshots.W004",
        )


def _connectors(settings: Settings) -> Iterator[CheckMessage]:
    for alias, named in settings.database_connectors.items():
        if alias not in connections:
            yield Error(
                f'SNAPSHOTS["DATABASE_CONNECTORS"] names {alias!r}, which is no key of DATABASES '
                f"({', '.join(connections)}).",
                hint="Correct the alias, or remove the entry.",
                id="snapshots.E005",
            )
        elif named != "auto":
            yield from _connector(settings, alias)


def _connector(settings: Settings, alias: str) -> Iterator[CheckMessage]:
    try:
        connector_for(alias, settings.database_connectors)
    except (SnapshotError, ImproperlyConfigured) as error:
        yield Error(str(error), hint="See docs/how-to/custom-connector.md.", id="snapshots.E004")
    except Exception as error:  # noqa: BLE001 - somebody else's class raises what it likes
        said = f'SNAPSHOTS["DATABASE_CONNECTORS"][{alias!r}] can\'t be made: {type(error).__name__}: {error}'
        yield Error(said, hint="Give an instance that is made with what it needs.", id="snapshots.E004")


def check_foreign_keys(**_options: object) -> list[CheckMessage]:
    """Constraints on the journal's tables, whose rows stay where they are when a restore replaces all others."""
    return [_foreign_key(field) for field in _fields() if _points_at_the_journal(field)]


def _fields() -> Iterator[Field[Any, Any]]:
    for model in apps.get_models(include_auto_created=True):
        if model._meta.app_label != _APP:
            yield from model._meta.local_fields


def _points_at_the_journal(field: Field[Any, Any]) -> bool:
    # A relation to a model that does not exist is a word; Django's own checks tell that.
    target: Any = field.remote_field.model if isinstance(field, ForeignKey) else None
    if not isinstance(target, type) or not issubclass(target, Model):
        return False
    return target._meta.app_label == _APP and bool(getattr(field, "db_constraint", False))


def _foreign_key(field: Field[Any, Any]) -> CheckMessage:
    target = field.related_model
    name = target.__name__ if isinstance(target, type) else str(target)
    return Error(
        f"{field} is a foreign key to the journal's model {name}. A restore leaves the journal's rows as they are "
        "while it replaces all others, so the database could not be restored.",
        hint="Keep the id in a UUIDField, or set db_constraint=False.",
        obj=field.model,
        id="snapshots.E006",
    )
