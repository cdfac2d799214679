"""What settings name: an instance, a class, or the dotted path of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.module_loading import import_string

from django_snapshots.exceptions import SnapshotConfigurationError


def instance_of(named: object, where: str) -> object:
    """The instance that the setting *where* means by *named*; a class is made without arguments.

    Raises ``SnapshotConfigurationError``.
    """
    found = imported(named, where) if isinstance(named, str) else named
    return made(found, {}, where) if isinstance(found, type) else found


def imported(path: str, where: str) -> Any:
    """What the dotted *path* in the setting *where* leads to; raises ``SnapshotConfigurationError``."""
    try:
        return import_string(path)
    except ImportError as error:
        raise SnapshotConfigurationError(f"{where} can't be imported from {path!r}: {error}.") from error


def made(kind: type, options: Mapping[str, Any], where: str) -> object:
    """An instance of *kind* with *options*; raises ``SnapshotConfigurationError`` if they don't fit it."""
    try:
        return kind(**options)
    except TypeError as error:
        how = f"with {', '.join(options)}" if options else "without arguments; give an instance instead"
        raise SnapshotConfigurationError(f"{where}: {kind.__qualname__} can't be made {how} ({error}).") from error
