"""The databases that restores leave beside a target: their names say whose they are, their comments the rest.

Three kinds, each named by a mark:

- ``django_snapshots_new_<mark>``: what the restore *mark* is building, or has taken back; it may be dropped;
- ``django_snapshots_kept_<mark>``: what the restore *mark* has replaced;
- ``django_snapshots_lent_<mark>``: a kept state that the undo *mark* is about to bring back. Its comment says under
  which mark it was kept. It is never dropped, only given back.

The first is made by CREATE DATABASE, and gets its comment right afterwards; who dies between the two leaves an empty
database that has none. Every other change of a name changes the comment in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.maintenance import execute
from django_snapshots.connectors.postgres.quoting import identifier, literal
from django_snapshots.replaced import Beside

_PREFIX = "django_snapshots_"
_FORMAT = 1


class Kind(StrEnum):
    """What a database beside a target is."""

    NEW = "new"
    KEPT = "kept"
    LENT = "lent"


def name_of(kind: Kind, mark: str) -> str:
    """What the database of *kind* for *mark* is called."""
    return f"{_PREFIX}{kind}_{mark}"


@dataclass(frozen=True, kw_only=True)
class Remark:
    """What the comment of a database beside a target says."""

    of: str
    """The name of the target."""
    mark: str
    """For a kept state, also one that is lent: of the restore that has replaced it."""
    label: str = ""
    """What the sessions of the attempt that builds it are called."""
    about: Mapping[str, Any] = field(default_factory=dict)
    kept_at: str | None = None
    comment: str | None = None
    """The comment that the database had when it was the target."""

    def text(self) -> str:
        """As it is written."""
        said = {"django_snapshots": _FORMAT, "of": self.of, "mark": self.mark, "label": self.label}
        if self.kept_at is not None:
            said |= {"kept_at": self.kept_at, "about": dict(self.about), "comment": self.comment}
        return json.dumps(said)

    @classmethod
    def read(cls, text: str | None) -> Remark | None:
        """What *text* says, or ``None`` if it isn't one of ours."""
        try:
            said = json.loads(text or "")
            if said["django_snapshots"] != _FORMAT:
                return None
            kept_at, about = said.get("kept_at"), said.get("about")
            if kept_at is not None:
                kept_at = datetime.fromisoformat(kept_at)
                if kept_at.tzinfo is None:
                    return None
                kept_at = kept_at.astimezone(UTC).isoformat()
            return cls(
                of=str(said["of"]),
                mark=str(said["mark"]),
                label=str(said["label"]),
                about=about if isinstance(about, dict) else {},
                kept_at=kept_at,
                comment=said.get("comment"),
            )
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return None


@dataclass(frozen=True, kw_only=True)
class Found:
    """One database with a name of ours."""

    name: str
    kind: Kind
    mark: str
    """From the name."""
    remark: Remark | None
    in_use: bool


def found(connection: BaseDatabaseWrapper) -> list[Found]:
    """Every database of the server that is named as ours are."""
    sql = """
        SELECT d.datname::text, pg_catalog.shobj_description(d.oid, 'pg_database'),
            (SELECT array_agg(a.application_name) FROM pg_catalog.pg_stat_activity a WHERE a.datname = d.datname)
        FROM pg_catalog.pg_database d WHERE starts_with(d.datname::text, %s) ORDER BY d.oid DESC
    """
    others = "SELECT application_name FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    at_work = {label for (label,) in catalog.rows(connection, others) if label}
    return [
        _read(name, comment, sessions or [], at_work)
        for name, comment, sessions in catalog.rows(connection, sql, [_PREFIX])
        if _kind(name) is not None
    ]


def _read(name: str, comment: str | None, sessions: Sequence[str], at_work: set[str]) -> Found:
    kind = _kind(name)
    assert kind is not None  # noqa: S101 - the caller has looked
    remark = Remark.read(comment)
    alive = bool(sessions) or (remark is not None and kind is not Kind.KEPT and remark.label in at_work)
    return Found(name=name, kind=kind, mark=name.removeprefix(f"{_PREFIX}{kind}_"), remark=remark, in_use=alive)


def _kind(name: str) -> Kind | None:
    return next((kind for kind in Kind if name.startswith(f"{_PREFIX}{kind}_")), None)


def beside(connection: BaseDatabaseWrapper, target: str, place: str) -> list[Beside]:
    """What there is beside the database *target*.

    A kept state whose comment can't be read is nobody's, because it may be of another target. A new one without a
    comment holds nothing; it shows beside every target. A lent one shows twice: as what is kept, and as what its undo
    has left, because whoever settles the undo gives it back.
    """
    things = [item for item in found(connection) if _is_of(item, target)]
    listed = [_told(item, place) for item in things]
    listed += [_told_of_undo(item, place) for item in things if item.kind is Kind.LENT]
    return sorted(listed, key=lambda item: item.kept_at.timestamp() if item.kept_at else 0.0, reverse=True)


def _is_of(item: Found, target: str) -> bool:
    return item.remark.of == target if item.remark else item.kind is Kind.NEW


def _told(item: Found, place: str) -> Beside:
    remark = item.remark
    kept = item.kind is not Kind.NEW
    return Beside(
        mark=remark.mark if remark and kept else item.mark,
        kept=kept,
        place=_place(item, place),
        about=remark.about if remark else {},
        kept_at=datetime.fromisoformat(remark.kept_at) if remark and remark.kept_at and kept else None,
        in_use=item.in_use,
    )


def _told_of_undo(item: Found, place: str) -> Beside:
    return Beside(mark=item.mark, kept=False, place=_place(item, place), in_use=item.in_use)


def _place(item: Found, place: str) -> str:
    return f'PostgreSQL database "{item.name}" on {place}'


def rename(connection: BaseDatabaseWrapper, old: str, new: str) -> None:
    """Rename a database; the server waits some seconds for the end of the sessions in it, then refuses."""
    execute(connection, f"ALTER DATABASE {identifier(old)} RENAME TO {identifier(new)}")


def comment(connection: BaseDatabaseWrapper, name: str, text: str | None) -> None:
    """Give a database a comment, or none."""
    said = "NULL" if text is None else literal(text)
    execute(connection, f"COMMENT ON DATABASE {identifier(name)} IS {said}")


def drop(connection: BaseDatabaseWrapper, name: str) -> None:
    """Drop a database and end the sessions in it; nothing if it isn't there."""
    if catalog.rows(connection, "SELECT 1 FROM pg_database WHERE datname = %s AND datistemplate", [name]):
        execute(connection, f"ALTER DATABASE {identifier(name)} IS_TEMPLATE false")
    execute(connection, f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")


def number_of(connection: BaseDatabaseWrapper, name: str) -> int | None:
    """The number (oid) of the database *name*, which it keeps when it is renamed."""
    found = catalog.rows(connection, "SELECT oid::bigint FROM pg_database WHERE datname = %s", [name])
    return int(found[0][0]) if found else None
