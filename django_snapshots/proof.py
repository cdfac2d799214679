"""What verifies and drills have said of a snapshot: kept beside it, and in the journal of whoever made them.

A result beside a snapshot is hostile until it has passed here. It says only what is thought of the snapshot: one that
is missing or can't be read hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connections

from django_snapshots.artifacts.capabilities import drills_of
from django_snapshots.catalog import Catalog, Note
from django_snapshots.conf import Settings
from django_snapshots.exceptions import (
    SnapshotDrillError,
    SnapshotError,
    SnapshotIntegrityError,
)
from django_snapshots.manifest import Snapshot, to_iso
from django_snapshots.plan import DRILL_LEVEL, LEVELS

KINDS = ("verify", "drill")
"""The kinds of notes that are results."""
DAMNING: Mapping[str, tuple[str, ...]] = {
    "restore": (SnapshotIntegrityError.__name__,),
    "verify": (SnapshotIntegrityError.__name__,),
    "drill": (SnapshotIntegrityError.__name__, SnapshotDrillError.__name__),
}
"""For each kind of run the errors that speak against the snapshot. Others say that it could not be asked: a server or
a storage that is away or full, a right that is missing, a cancel (``blame.py``). Then the run has failed, no proof was
made, and what was proved before stands."""
_PROBLEM_LENGTH = 4000
_TEXT_LENGTH = 200
_MOST_DATABASES = 100


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What one verify or drill has said."""

    kind: str
    """``verify``, ``drill``, or ``restore`` for one that has found damage on its way."""
    level: int
    ok: bool
    at: datetime
    """When it ended; aware."""
    run: str = ""
    """Its run's id in the journal of whoever made it."""
    seconds: float | None = None
    """How long it took; of a drill, how long all restores took."""
    problem: str = ""
    host: str = ""
    version: str = ""
    """That of this package."""
    databases: Mapping[str, float] = field(default_factory=dict)
    """For each database, the seconds that its restore took."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for programs."""
        return {**self.content(), "kind": self.kind, "at": to_iso(self.at)}

    def content(self) -> dict[str, Any]:
        """What is noted beside the snapshot."""
        return {
            "level": self.level,
            "ok": self.ok,
            "run": self.run,
            "seconds": self.seconds,
            "problem": self.problem[:_PROBLEM_LENGTH],
            "host": self.host[:_TEXT_LENGTH],
            "version": self.version,
            "databases": dict(list(self.databases.items())[:_MOST_DATABASES]),
        }

    @classmethod
    def from_note(cls, note: Note) -> Proof:
        """Raises ``SnapshotIntegrityError`` for a note that is no result."""
        data = note.content
        level, ok, seconds = data.get("level"), data.get("ok"), data.get("seconds")
        levels = (DRILL_LEVEL,) if note.kind == "drill" else LEVELS
        databases = data.get("databases")
        if (
            not isinstance(ok, bool)
            or not isinstance(level, int)
            or isinstance(level, bool)
            or level not in levels
            or not (seconds is None or _is_duration(seconds))
            or not isinstance(databases, dict)
            or not all(_is_duration(value) for value in databases.values())
            or not all(isinstance(data.get(key), str) for key in ("run", "problem", "host", "version"))
        ):
            raise SnapshotIntegrityError(f"The result of a {note.kind} beside the snapshot is none.")
        return cls(
            kind=note.kind,
            level=int(level),
            ok=ok,
            at=note.written_at,
            run=data["run"][:_TEXT_LENGTH],
            seconds=seconds,
            problem=data["problem"][:_PROBLEM_LENGTH],
            host=data["host"][:_TEXT_LENGTH],
            version=data["version"][:_TEXT_LENGTH],
            databases={name[:_TEXT_LENGTH]: value for name, value in list(databases.items())[:_MOST_DATABASES]},
        )

    def against(self) -> str:
        """Why the snapshot is not relied on, if it is this."""
        what = "failed its drill" if self.kind == "drill" else "known to be damaged"
        return f"{what}, by {self.kind} run {self.run}" if self.run else f"{what}, by a {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """The results beside one snapshot: the last verify and the last drill."""

    found: Mapping[str, Proof] = field(default_factory=dict)
    """By their kind."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Kinds whose result can't be read, with the reason: then it is not known."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: each kind's result, ``None`` where there is none, or why it can't be read."""
        return {kind: self._told(kind) for kind in KINDS}

    def _told(self, kind: str) -> dict[str, Any] | None:
        if kind in self.unreadable:
            return {"kind": kind, "unreadable": self.unreadable[kind]}
        return self.found[kind].to_json() if kind in self.found else None


def outlives(before: Proof | str | None, proof: Proof) -> bool:
    """Whether the result *before*, which may be unreadable (then why), stays in the place of *proof*: damage that was
    found is forgotten only by what looks at least as deep. What can't be read may have been damage that a verify of
    the usual level found."""
    if before is None or not proof.ok:
        return False
    return proof.level < 2 if isinstance(before, str) else not before.ok and proof.level < before.level


def can_be_drilled(settings: Settings, snapshot: Snapshot) -> bool:
    """Whether a drill looks deeper into some of *snapshot* than a verify of the highest level."""
    kind = settings.kind("database")
    wanted = [settings.drill_databases.get(name, name) for name in snapshot.databases]
    return any(drills_of(kind, alias) for alias in wanted if alias in connections)


def proofs_of(catalog: Catalog, snapshot: Snapshot) -> Proofs:
    """What is noted beside *snapshot*. Raises nothing: what can't be read is said to be unknown."""
    try:
        notes = catalog.notes(snapshot)
    except SnapshotError as error:
        return Proofs(unreadable={kind: str(error) for kind in KINDS})
    found: dict[str, Proof] = {}
    unreadable = {kind: str(error) for kind, error in notes.unreadable.items() if kind in KINDS}
    for kind in KINDS:
        if kind in notes.found:
            try:
                found[kind] = Proof.from_note(notes.found[kind])
            except SnapshotError as error:
                unreadable[kind] = str(error)
    return Proofs(found=found, unreadable=unreadable)


def standing(proofs: Iterable[Proof]) -> str:
    """Why a snapshot is not relied on; empty if nothing speaks against it.

    What went well later, and looked as deep, clears it.
    """
    bad: Proof | None = None
    for proof in sorted(proofs, key=lambda proof: proof.at):
        if not proof.ok:
            bad = proof
        elif bad is not None and proof.level >= bad.level:
            bad = None
    return bad.against() if bad is not None else ""


def not_relied_on(
    catalog: Catalog, snapshots: Sequence[Snapshot], journal: Mapping[str, Sequence[Proof]]
) -> dict[str, str]:
    """The names of those of *snapshots* that no retention policy may count, with the reason: by what is noted beside
    them, and by what the *journal* has of their names."""
    found: dict[str, str] = {}
    for snapshot in snapshots:
        beside = proofs_of(catalog, snapshot)
        why = standing([*beside.found.values(), *journal.get(snapshot.name, ())])
        if not why and beside.unreadable:
            kind, text = next(iter(beside.unreadable.items()))
            why = f"the result of its last {kind} can't be read: {text}"
        if why:
            found[snapshot.name] = why
    return found


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
