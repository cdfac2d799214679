"""Compares the rows that a restore has made with those that the snapshot had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_snapshots.connectors.postgres.catalog import split_name
from django_snapshots.exceptions import SnapshotIntegrityError

_SHOWN = 10


def compare(
    alias: str, wanted: Mapping[str, int], found: Mapping[str, int], rerouted: Mapping[str, str] | None = None
) -> None:
    """Raise ``SnapshotIntegrityError`` unless the same tables have the same number of rows; those that are *rerouted*,
    in sum for what they are partitions of."""
    whole = {split_name(part): split_name(root) for part, root in (rerouted or {}).items()}
    here, there = _summed(found, whole), _summed(wanted, whole)
    wrong = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    if wrong:
        told = [f"{'.'.join(name)} {here.get(name)} instead of {there.get(name)}" for name in wrong[:_SHOWN]]
        raise SnapshotIntegrityError(
            f"{len(wrong)} tables of {alias!r} don't have the rows that the snapshot had: {', '.join(told)}. "
            "Nothing was changed."
        )


def _summed(counts: Mapping[str, int], whole: Mapping[tuple[str, ...], tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    summed: dict[tuple[str, ...], int] = {}
    for name, number in counts.items():
        table = whole.get(split_name(name), split_name(name))
        summed[table] = summed.get(table, 0) + number
    return summed


def compare_large_objects(alias: str, metadata: Mapping[str, Any], found: int) -> None:
    """Raise ``SnapshotIntegrityError`` unless there are as many large objects as the snapshot had, if it says that."""
    wanted = metadata.get("large_objects")
    if isinstance(wanted, int) and wanted != found:
        raise SnapshotIntegrityError(
            f"{alias!r} has {found} large objects instead of the {wanted} that the snapshot had. Nothing was changed."
        )
