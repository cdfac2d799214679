"""Make one prefix of a storage the mirror of another, with nothing but the operations of the advanced tier."""

from __future__ import annotations

from django_snapshots.exceptions import SnapshotPathError, SnapshotStorageError
from django_snapshots.storage.paths import below, check_prefix, is_below, join, refuse_remote
from django_snapshots.storage.protocols import AdvancedSnapshotStorage


def mirror(
    storage: AdvancedSnapshotStorage, src_prefix: str, dst_prefix: str, *, allow_empty: bool, label: str
) -> None:
    """Copy every object of *src_prefix* to *dst_prefix*, then remove what else is there.

    Every object is copied in full: a mirror that shares bytes with its source, or trusts sizes and dates, is none.
    *label* says in messages which storage this is. Raises ``SnapshotStorageError`` for a remote, an empty source
    unless *allow_empty*, and prefixes that overlap.
    """
    refuse_remote(src_prefix, label)
    refuse_remote(dst_prefix, label)
    src, dst = check_prefix(src_prefix), check_prefix(dst_prefix)
    if is_below(src, dst) or is_below(dst, src):
        raise SnapshotPathError(f"Can't sync {src_prefix!r} to {dst_prefix!r}: one lies within the other.")
    wanted = {join(dst, below(path, src)): path for path in storage.recursive_list(src)}
    if not wanted and not allow_empty:
        raise SnapshotStorageError(
            f"Refused to sync {src_prefix!r} to {dst_prefix!r} in {label}: the source is empty, and that would empty "
            "the destination. Pass allow_empty=True if that is what you want."
        )
    _make_equal(storage, dst, wanted)


def _make_equal(storage: AdvancedSnapshotStorage, dst: str, wanted: dict[str, str]) -> None:
    extra = [path for path in storage.recursive_list(dst) if path not in wanted]
    needed = {parent for path in wanted for parent in _parents(path)}
    for path in extra:
        # An object where the mirror needs a directory, or the other way round.
        if path in needed or any(parent in wanted for parent in _parents(path)):
            storage.delete(path)
    for new, path in wanted.items():
        storage.stream_write(new, storage.stream_read(path))
    # What is too much goes last: a copy that fails on a full disk must not have cost anything before.
    for path in extra:
        storage.delete(path)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]
