"""The archive's place in the project."""

from __future__ import annotations

from django.apps import AppConfig


class ArchiveConfig(AppConfig):
    """The archive."""

    name = "tasks.demo.archive"
    label = "archive"
    default_auto_field = "django.db.models.BigAutoField"
