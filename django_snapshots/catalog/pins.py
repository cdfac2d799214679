"""Pins: a snapshot that is pinned is deleted by nobody until it is unpinned. A pin is a note of its kind.

A pin that can't be read counts as one: who wrote it wanted the snapshot to stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django_snapshots.catalog.notes import Note, Notes
from django_snapshots.exceptions import SnapshotError
from django_snapshots.manifest import to_iso

PIN = "pin"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """Why a snapshot stays."""

    reason: str = ""
    by: str = ""
    """Who pinned it, as far as that is known."""
    pinned_at: datetime | None = None
    problem: str = ""
    """Why the pin can't be read, if so."""

    def __str__(self) -> str:
        """In words: ``pinned: for the audit``."""
        if self.problem:
            return f"pinned, by a pin that can't be read: {self.problem}"
        by = f" by {self.by}" if self.by else ""
        return f"pinned{by}: {self.reason}" if self.reason else f"pinned{by}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "reason": self.reason,
            "by": self.by,
            "pinned_at": None if self.pinned_at is None else to_iso(self.pinned_at),
            "problem": self.problem,
        }


def pin_of(notes: Notes) -> Pin | None:
    """The pin among *notes*; ``None`` if there is none."""
    if PIN in notes.unreadable:
        return unreadable_pin(notes.unreadable[PIN])
    return made_of(notes.found.get(PIN))


def made_of(note: Note | None) -> Pin | None:
    """What *note* says, whose content may be anything."""
    if note is None:
        return None
    reason, by = (note.content.get(key) for key in ("reason", "by"))
    return Pin(
        reason=reason if isinstance(reason, str) else "",
        by=by if isinstance(by, str) else "",
        pinned_at=note.written_at,
    )


def unreadable_pin(error: SnapshotError) -> Pin:
    """What a pin that can't be read counts as."""
    return Pin(problem=str(error))
