"""Aliases that no settings have: another database on the server of an alias, written ``alias@name``.

For a restore beside the original: ``shop@shop_copy`` is the database ``shop_copy`` where the alias ``shop`` leads.
Every process that meets such an alias makes it for itself. It is in no snapshot, and no request opens a transaction in
it: the database need not be there any more.
"""

from __future__ import annotations

import copy
import threading

from django.db import connections

from django_snapshots.exceptions import SnapshotConfigurationError

SEPARATOR = "@"
_LONGEST_NAME = 1024
_OWN = "django_snapshots_"
_SYSTEMS = frozenset({"information_schema", "mysql", "performance_schema", "sys", "template0", "template1"})
_lock = threading.Lock()
_made: set[str] = set()


def base_of(alias: str) -> str:
    """The alias of the settings that *alias* is made of; itself if it is one."""
    return alias if alias in of_settings() else alias.partition(SEPARATOR)[0]


def beside(alias: str, name: str) -> str:
    """The alias of the database *name* where *alias* leads. Raises ``SnapshotConfigurationError``."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise SnapshotConfigurationError(f"{name!r} can't be the name of a database.")
    if name.lower() in _SYSTEMS or name.lower().startswith(_OWN):
        raise SnapshotConfigurationError(
            f"Nothing is restored into {name!r}: that name is one of the server's own, or of what restores keep. "
            "Choose another one."
        )
    return ensure(f"{alias}{SEPARATOR}{name}")


def ensure(alias: str) -> str:
    """Make *alias* known to Django in this process, if it is of this form; return it.

    Raises ``SnapshotConfigurationError`` if it is made of an alias that there isn't.
    """
    base, separator, name = alias.partition(SEPARATOR)
    if not separator or alias in connections.settings:
        return alias
    if base not in connections.settings:
        raise SnapshotConfigurationError(f"There is no alias {base!r}; there is: {', '.join(of_settings())}.")
    with _lock:
        entry = {**copy.deepcopy(connections.settings[base]), "NAME": name, "ATOMIC_REQUESTS": False}
        _made.add(alias)
        connections.settings.setdefault(alias, entry)
    return alias


def known() -> list[str]:
    """Those that this process has met."""
    return [alias for alias in connections.settings if alias in _made]


def of_settings() -> list[str]:
    """Those of the project's settings."""
    return [alias for alias in connections.settings if alias not in _made]
