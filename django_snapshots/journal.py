"""Keeps the journal true when the database that holds it is restored."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from django.apps import apps
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from django_snapshots import runs
from django_snapshots.connectors import sqlite_files
from django_snapshots.models import Run

_APP = "django_snapshots"


def recorded_migrations(aliases: Iterable[str]) -> dict[str, list[str]]:
    """This app's applied migrations in each alias before a restore, as far as it can be asked."""
    return {alias: found for alias in aliases if (found := _recorded_before(alias)) is not None}


def _recorded_before(alias: str) -> list[str] | None:
    """``None`` if it can't be asked: a database that is to be made by the restore, which to connect to would make a
    missing SQLite file, and a file that is no database."""
    connection = connections[alias]
    if sqlite_files.file_is_missing(alias) or not _answers(connection):
        return None
    try:
        return _recorded(connection)
    except DatabaseError as error:
        if not isinstance(error.__cause__, sqlite3.Error) or not sqlite_files.is_damage(error.__cause__):
            raise
        return None


def _answers(connection: BaseDatabaseWrapper) -> bool:
    """Whether it can be connected to."""
    try:
        connection.ensure_connection()
    except DatabaseError:
        return False
    return True


def make_fit(aliases: Iterable[str], recorded: dict[str, list[str]]) -> None:
    """After a restore of *aliases*: bring what speaks of the journal's tables in line with the tables that are there.

    The snapshot may be older or newer than they are, or the database may have had none. Beat schedules that came back
    are marked as run now, so that beat does not catch up on what the snapshot's time had missed.
    """
    for alias in aliases:
        connection = connections[alias]
        connection.close()
        with transaction.atomic(using=alias):
            here = _table_names(connection)
            _fit_migrations(connection, here, recorded.get(alias, []))
            _fit_beat(alias, here)
        if runs.tables() <= here:
            _fit_permissions(alias, here)


def _table_names(connection: BaseDatabaseWrapper) -> set[str]:
    with connection.cursor() as cursor:
        return set(connection.introspection.table_names(cursor))


def _recorded(connection: BaseDatabaseWrapper) -> list[str]:
    return sorted(name for app, name in MigrationRecorder(connection).applied_migrations() if app == _APP)


def _fit_migrations(connection: BaseDatabaseWrapper, here: set[str], before: list[str]) -> None:
    recorder = MigrationRecorder(connection)
    has_journal = runs.tables() <= here
    # `migrate` records a migration also where a router keeps its tables out; that row says nothing about them.
    if not recorder.has_table() or not (has_journal or router.allow_migrate_model(connection.alias, Run)):
        return
    should = set(before) if has_journal else set()
    is_now = set(_recorded(connection))
    for name in sorted(is_now - should):
        recorder.record_unapplied(_APP, name)
    for name in sorted(should - is_now):
        recorder.record_applied(_APP, name)


def _fit_beat(alias: str, here: set[str]) -> None:
    if not apps.is_installed("django_celery_beat"):
        return
    periodic_task = apps.get_model("django_celery_beat", "PeriodicTask")
    if router.db_for_write(periodic_task) != alias or periodic_task._meta.db_table not in here:
        return
    periodic_task._default_manager.using(alias).update(last_run_at=timezone.now())
    changes = apps.get_model("django_celery_beat", "PeriodicTasks")
    changes._default_manager.using(alias).update_or_create(ident=1, defaults={"last_update": timezone.now()})


def _fit_permissions(alias: str, here: set[str]) -> None:
    """Content types and permissions of the journal's models, made as ``migrate`` makes them."""
    if not {"django_content_type", "auth_permission"} <= here:
        return
    if not (apps.is_installed("django.contrib.contenttypes") and apps.is_installed("django.contrib.auth")):
        return
    from django.contrib.auth.management import create_permissions
    from django.contrib.contenttypes.management import create_contenttypes
    from django.contrib.contenttypes.models import ContentType

    config = apps.get_app_config(_APP)
    ContentType.objects.clear_cache()
    create_contenttypes(config, verbosity=0, interactive=False, using=alias)
    create_permissions(config, verbosity=0, interactive=False, using=alias)
