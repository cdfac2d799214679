"""The app's place in a project."""

from __future__ import annotations

from django.apps import AppConfig


class DjangoSnapshotsConfig(AppConfig):
    """Snapshots: the journal, its admin and the ``snapshots`` command."""

    name = "django_snapshots"
    verbose_name = "Snapshots"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect to beat and ``migrate``, which write the schedules, and register the system checks."""
        from django_snapshots import checks, schedules

        schedules.connect()
        checks.connect()
