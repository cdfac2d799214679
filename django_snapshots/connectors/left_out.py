"""What is said, the same way on every engine, where rows can't be left out of a dump."""

from __future__ import annotations

from collections.abc import Iterable

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError


def require_tables(alias: str, wanted: Iterable[str], present: Iterable[str]) -> None:
    """Raise ``SnapshotConfigurationError`` that names every table of *wanted* that is not *present*."""
    if unknown := sorted(set(wanted) - set(present)):
        raise SnapshotConfigurationError(
            f'SNAPSHOTS["EXCLUDE_DATA"]["{alias}"] names what is no table with rows of its own in {alias!r}: '
            f"{', '.join(unknown)}. Nothing was dumped."
        )


def require_no_pointers(alias: str, pointers: Iterable[str]) -> None:
    """Raise ``SnapshotConnectorError`` if foreign keys, told as *pointers*, lead to rows that are to be left out."""
    if found := sorted(set(pointers)):
        raise SnapshotConnectorError(
            f"{alias!r} can't be dumped so that it can be restored: the rows that these foreign keys point at are left "
            f"out, and their own are not: {', '.join(found)}. Leave both tables' rows out, or neither's "
            f'(SNAPSHOTS["EXCLUDE_DATA"]["{alias}"]).'
        )
