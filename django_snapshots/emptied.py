"""Whether a new snapshot is empty where the one before it wasn't: pure functions of two manifests.

A dump can be whole and still be of the wrong thing: a volume that was not mounted, a database that was just made anew,
a table that a mistake has emptied. The snapshot before it knows better.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django_snapshots.manifest import ArtifactRecord, Snapshot

_FILLED_BY_DJANGO = frozenset({"django_migrations", "django_content_type", "auth_permission"})
"""``migrate`` fills them, so rows in them say nothing of whether there are data."""
_LEFT = 0.1
"""A table that has less than this share of the rows that it had is told of."""
_FEWEST = 20
"""One that had fewer rows comes and goes."""
_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a new artifact lacks of what was in its predecessor, in a sentence."""

    text: str
    whole: bool
    """Whether nothing is left of it, for certain; else it is only told."""


EMPTIED = "emptied"
"""In the metadata of an artifact that was emptied, and was taken because the settings only warn of that: nobody has
said that it is how it should be, so the one before it stays the one to compare with."""


def predecessor_of(snapshot: Snapshot, others: Iterable[Snapshot], record: ArtifactRecord) -> ArtifactRecord | None:
    """The same artifact in the newest of *others* of the same project and environment that has it, whatever is known of
    that snapshot besides: one that was damaged later had what its manifest says."""
    ours = (snapshot.project, snapshot.environment)
    for other in sorted(others, key=lambda item: item.created_at, reverse=True):
        # A safety copy is of what was wrong, perhaps.
        if (other.project, other.environment) == ours and other.run != snapshot.run and other.safety is None:
            for found in other.artifacts:
                if (found.type, found.subject) == (record.type, record.subject) and not found.metadata.get(EMPTIED):
                    return found
    return None


def losses(record: ArtifactRecord, before: ArtifactRecord) -> Iterator[Loss]:
    """What *record* lacks of what was in *before*."""
    if record.type == "media":
        yield from _lost_files(record, before)
    elif record.type == "database":
        yield from _lost_rows(record, before)


def _lost_files(record: ArtifactRecord, before: ArtifactRecord) -> Iterator[Loss]:
    now, then = (_number(item.metadata.get("files")) for item in (record, before))
    if now is None or not then:
        return
    if now == 0:
        yield Loss(text=f"There is no media file now, and there were {then:,}.", whole=True)
    elif _fell(now, then):
        yield Loss(text=f"There are {now:,} media files now, and there were {then:,}.", whole=False)


def _lost_rows(record: ArtifactRecord, before: ArtifactRecord) -> Iterator[Loss]:
    left_out = set(_texts(record.metadata.get("data_excluded")))
    then, now = (
        {name: count for name, count in _counts(item).items() if _table(name) not in left_out}
        for item in (before, record)
    )
    exact = all(item.metadata.get("row_counts_exact") is True for item in (record, before))
    if not then or (not now and not exact):
        return
    total = sum(then.values())
    if total and not any(now.values()):
        what = "has no row now" if now else "has no table now"
        yield Loss(text=f"The database {record.subject!r} {what}, and had {total:,} rows.", whole=exact)
        return
    fallen = [
        f"{name} ({then[name]:,} to {now[name]:,})" if name in now else f"{name} ({then[name]:,}; it is gone)"
        for name in sorted(then)
        if _fell(now.get(name, 0), then[name])
    ]
    if fallen:
        more = f" and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
        listed = ", ".join(fallen[:_NAMED])
        yield Loss(
            text=f"More than nine tenths of the rows are gone since the last snapshot: {listed}{more}.", whole=False
        )


def _fell(now: int, then: int) -> bool:
    return then >= _FEWEST and now < then * _LEFT


def _counts(record: ArtifactRecord) -> dict[str, int]:
    """The rows of every table that Django does not fill by itself."""
    counts = record.metadata.get("row_counts")
    pairs = counts.items() if isinstance(counts, Mapping) else ()
    numbers = {str(name): _number(count) for name, count in pairs}
    return {
        name: count for name, count in numbers.items() if count is not None and _table(name) not in _FILLED_BY_DJANGO
    }


def _table(name: str) -> str:
    """The name of a table without its schema and its quotes."""
    return name.rpartition(".")[2].strip('"')


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
