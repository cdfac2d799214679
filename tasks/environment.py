"""Reads the service's environment variables, each also from the file that ``<NAME>_FILE`` names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

_URL = "DATABASE_URL"
_ALIAS = re.compile(r"[a-z][a-z0-9_]*")
_SQLITE_OPTIONS = {"timeout": 20, "transaction_mode": "IMMEDIATE"}
"""Several processes write: each waits for the others, and asks for the lock at once rather than half way."""


class Environment(environ.FileAwareEnv):  # type: ignore[misc]
    """Values of variables or files, without the line's end that editors leave in a file."""

    def get_value(self, var: str, *args: Any, **options: Any) -> Any:
        """The variable's value."""
        try:
            value = super().get_value(var, *args, **options)
        except OSError as error:
            raise ImproperlyConfigured(f"{var}_FILE names {error.filename}: {error.strerror}.") from error
        return value.strip() if isinstance(value, str) else value

    def text(self, name: str, default: str) -> str:
        """A text; what is set to nothing counts as not set."""
        return str(self.get_value(name, default=default)) or default

    def path(self, name: str, default: Path) -> Path:
        """An absolute path."""
        return Path(self.text(name, str(default))).absolute()

    def numbers(self, name: str) -> dict[str, int]:
        """Whole numbers by name, written ``keep_daily=14,keep_monthly=12``; empty if the variable isn't set."""
        pairs = [pair.partition("=") for pair in self.text(name, "").split(",") if pair.strip()]
        try:
            return {key.strip(): int(number) for key, _, number in pairs}
        except ValueError:
            raise ImproperlyConfigured(f"{name} is not like keep_daily=14,keep_monthly=12.") from None

    def secret_key(self) -> str:
        """``SECRET_KEY``; there is no default that others could know."""
        # Not by get_value, which takes a value that begins with "$" for the name of another variable.
        try:
            key = str(self.ENVIRON.get("SECRET_KEY", "")).strip()
        except OSError as error:
            raise ImproperlyConfigured(f"SECRET_KEY_FILE names {error.filename}: {error.strerror}.") from error
        if not key:
            raise ImproperlyConfigured(
                "SECRET_KEY is not set. Make one by `python -c 'import secrets; print(secrets.token_urlsafe(50))'`, "
                "keep it, and put it into the variable SECRET_KEY or into a file that SECRET_KEY_FILE names."
            )
        return key

    def databases(self, default: str) -> dict[str, dict[str, Any]]:
        """``DATABASES`` from ``DATABASE_URL`` and every ``DATABASE_URL_<ALIAS>``."""
        names = {name.removesuffix("_FILE") for name in os.environ if name == _URL or name.startswith(f"{_URL}_")}
        found = {"default": self._database(_URL, default)}
        for name in sorted(names - {_URL}):
            alias = name.removeprefix(f"{_URL}_").lower()
            if alias == "default" or not _ALIAS.fullmatch(alias):
                raise ImproperlyConfigured(f"{name} can't name an alias; {_URL} itself is the alias 'default'.")
            found[alias] = self._database(name)
        return found

    def _database(self, name: str, default: str = "") -> dict[str, Any]:
        url = self.text(name, default)
        scheme = url.partition("://")[0]
        if scheme not in self.DB_SCHEMES:
            raise ImproperlyConfigured(
                f"{name} is not the URL of a database. Such as: postgres://user:password@host:5432/name, "
                "mysql://user:password@host:3306/name, sqlite:////absolute/path."
            )
        entry: dict[str, Any] = self.db_url_config(url)
        if scheme == "sqlite":
            entry["OPTIONS"] = {**_SQLITE_OPTIONS, **entry.get("OPTIONS", {})}
        return entry
