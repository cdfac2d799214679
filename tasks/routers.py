"""Which database the service's own tables are in."""

from __future__ import annotations

from typing import Any


class OwnTablesInDefault:
    """The service migrates ``default`` alone; the other aliases are somebody else's databases."""

    def allow_migrate(self, db: str, app_label: str, **_hints: Any) -> bool:
        """Whether *app_label* may have tables in *db*."""
        return db == "default"
