"""Connectors as users write them: outside the package, with the two methods alone, around a dump tool of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connections


class PlainSqlConnector:
    """PostgreSQL as a plain SQL script: ``pg_dump`` and ``psql`` from *programs*."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        with dest.open("wb") as file:
            self._run(db_alias, "pg_dump", "--clean", "--if-exists", stdout=file)
        return {"format": "sql", "written_with": "pg_dump"}

    def restore(self, db_alias: str, src: Path) -> None:
        with src.open("rb") as file:
            self._run(
                db_alias, "psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", stdin=file, stdout=subprocess.DEVNULL
            )

    def _run(self, db_alias: str, program: str, *arguments: str, **files: Any) -> None:
        config = settings.DATABASES[db_alias]
        environment = {
            **os.environ,
            "PGHOST": config["HOST"],
            "PGPORT": str(config["PORT"]),
            "PGUSER": config["USER"],
            "PGPASSWORD": config["PASSWORD"],
            "PGDATABASE": config["NAME"],
        }
        subprocess.run(
            [self._programs / program, *arguments], check=True, env=environment, stderr=subprocess.PIPE, **files
        )


class SqliteShellConnector:
    """SQLite as SQL text, by the ``sqlite3`` program."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        with dest.open("wb") as file:
            subprocess.run(["sqlite3", self._path(db_alias), ".dump"], check=True, stdout=file, stderr=subprocess.PIPE)
        return {"format": "sql"}

    def restore(self, db_alias: str, src: Path) -> None:
        connections[db_alias].close()
        path = Path(self._path(db_alias))
        path.unlink(missing_ok=True)
        with src.open("rb") as file:
            subprocess.run(["sqlite3", "-bail", str(path)], check=True, stdin=file, stderr=subprocess.PIPE)

    def _path(self, db_alias: str) -> str:
        return str(settings.DATABASES[db_alias]["NAME"])
