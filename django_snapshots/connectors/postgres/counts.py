"""Compares the rows that a restore has made with those that the snapshot had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_snapshots.connectors.postgres.catalog import split_name
from django_snapshots.exceptions import SnapshotIntegrityError

_SHOWN = 10


def exact(metadata: Mapping[str, Any]) -> Mapping[str, int] | None:
    """The row counts of a dump, if they can decide anything."""
    return metadata.get("row_counts") if metadata.get("row_counts_exact") else None


def compare(alias: str, wanted: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raise ``SnapshotIntegrityError`` unless the same tables have the same number of rows."""
    here = {split_name(name): number for name, number in found.items()}
    there = {split_name(name): number for name, number in wanted.items()}
    wrong = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    if wrong:
        told = [f"{'.'.join(name)} {here.get(name)} instead of {there.get(name)}" for name in wrong[:_SHOWN]]
        raise SnapshotIntegrityError(
            f"{len(wrong)} tables of {alias!r} don't have the rows that the snapshot had: {', '.join(told)}. "
            "Nothing was changed."
        )


def compare_large_objects(alias: str, metadata: Mapping[str, Any], found: int) -> None:
    """Raise ``SnapshotIntegrityError`` unless there are as many large objects as the snapshot had, if it says that."""
    wanted = metadata.get("large_objects")
    if isinstance(wanted, int) and wanted != found:
        raise SnapshotIntegrityError(
            f"{alias!r} has {found} large objects instead of the {wanted} that the snapshot had. Nothing was changed."
        )
