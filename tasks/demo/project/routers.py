"""Two databases: the archive's tables are in ``archive``, everybody else's in ``default``."""

from __future__ import annotations

from typing import Any

from django.db.models import Model


class ArchiveRouter:
    """Routes by app."""

    def db_for_read(self, model: type[Model], **_hints: Any) -> str:
        """Where a model is read from."""
        return _home(model._meta.app_label)

    def db_for_write(self, model: type[Model], **_hints: Any) -> str:
        """Where a model is written to."""
        return _home(model._meta.app_label)

    def allow_migrate(self, db: str, app_label: str, **_hints: Any) -> bool:
        """Whether *app_label* may have tables in *db*."""
        return db == _home(app_label)


def _home(app_label: str) -> str:
    return "archive" if app_label == "archive" else "default"
