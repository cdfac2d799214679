"""What a restore leaves beside its target, how it can be proved after a death, and how it comes back.

A restore has a *mark*. Everything that it builds or keeps on a server or a disk carries the mark in its name, so that
whoever comes later knows whose it is. Who can die when, and what then holds:

- before the switch: the target is untouched; what was built is removed by its mark (``settle``);
- inside the switch: it is one atomic step of the engine, or its record, which is durable before its first statement,
  lets ``settle`` bring it to its end or take it back;
- after the switch: the kept state carries the mark, which proves that the switch took place.

An attempt that only sleeps finds, at its next statement, that what it was to switch in is gone or settled, and fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from django_snapshots.exceptions import SnapshotError
from django_snapshots.transfer import Prepared, RestoreRequest, Source

TAKEN_BACK = "taken_back"
"""Said with a state that a restore has brought, and that was taken back because that restore has failed."""
KEPT_OF = "kept_of"
"""Said with a state that lies under another restore's mark: the run, 32 hex digits, which has replaced it."""


def back_mark(mark: str) -> str:
    """Under which the attempt *mark* keeps what it has brought, if it brings back what was there before."""
    return f"{mark}b"


class SnapshotUnsettled(SnapshotError):
    """It can't be told here, or not now, what became of a target. The run does not end with it: ``settle`` is called
    again later, by any worker."""


class Outcome(StrEnum):
    """What an attempt that is dead, or has lost its right, has made of a target."""

    BEFORE = "before"
    """The target is as it was before that attempt, and nothing that was built is left."""
    SWITCHED = "switched"
    """The target is what the attempt has put there; what it replaced is kept."""
    UNSEEN = "unseen"
    """It can't be told from here: the target is a file of another machine, or its server does not answer."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One thing that a restore has left beside a target."""

    mark: str
    kept: bool
    """Whether it is a state that was replaced; else it is what an attempt was building."""
    place: str
    """Where it is, in words, without secrets."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What its restore has written with it (``RestoreRequest.about``); empty if that can't be read."""
    kept_at: datetime | None = None
    """When it was replaced; aware."""
    in_use: bool = False
    """Whether a process that is alive works with it now, as far as can be seen."""
    unseen: str = ""
    """Why it can't be told from here what it is, and what to do: another user's, or a newer version's. It may be a
    state that was replaced, so an undo must know of it. Empty if that is known."""


@runtime_checkable
class KeepsReplaced(Protocol):
    """An optional capability of a connector or an artifact kind: to keep what a restore replaces, beside the target.

    *mark* is that of the restore which left the thing. All of these may be called any number of times, by any process
    that may reach the target, and again after a death at any line.
    """

    def keeps(self, subject: str) -> bool:
        """Whether a restore of *subject* keeps what it replaces, with the rights and the engine that are there.

        If not, its ``prepare`` calls ``RestoreRequest.safety`` before it changes anything.
        """

    def beside(self, subject: str) -> Sequence[Beside]:
        """Everything that carries a mark beside *subject*, the newest first.

        Raises ``SnapshotError`` where it can't be asked: an undo must know that there may be more. What of it can't
        be looked into is told as ``Beside.unseen``.
        """

    def settle(self, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
        """Bring an attempt that nobody has a right to any more to its end, whatever line it stopped at.

        Afterwards the target is in one of its two states, the attempt can't change it any more, even if it only slept,
        and what it was building is gone. *noted* is what it told ``RestoreRequest.note``. Raises ``SnapshotError``
        if something that it needs is away or in use: then it is called again later.
        """

    def bring_back(self, subject: str, mark: str, request: RestoreRequest) -> Prepared:
        """Prepare to put the kept state *mark* in the target's place; the switch keeps what is there now, under
        ``request.mark``. Raises ``SnapshotNotFoundError`` if there is no such state."""

    def remove(self, subject: str, mark: str) -> None:
        """Remove what carries *mark*, for ever; nothing if there is nothing. Never the target itself."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that stands in the way of a restore, or will surprise whoever asked for it."""

    text: str
    """What it is and what to do, in whole sentences."""
    stops: bool
    """Whether the restore can't be made; else it is a warning."""


@runtime_checkable
class Preflights(Protocol):
    """An optional capability of a connector or an artifact kind: to say beforehand all that stands in the way."""

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """Everything, not the first thing; changes nothing. May raise ``SnapshotError``, which stops the restore."""


@runtime_checkable
class Inspectable(Protocol):
    """An optional capability of a ``Prepared`` database: what was built can be looked at before it is switched."""

    def django_settings(self) -> Mapping[str, Any]:
        """An entry of ``DATABASES`` that leads to what was built; good until ``switch`` or ``discard``."""


@runtime_checkable
class Examines(Protocol):
    """An optional capability of a connector or an artifact kind: to look into stored content without restoring it."""

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any] | None:
        """Read *source* as far as it takes to know its format whole, and compare it with what the manifest says.

        Asks nothing of the target, which need not be there. Returns what was found, as plain JSON: numbers with their
        names, ``{"tables": 12}``; ``None`` if it can't look into this one. Raises ``SnapshotIntegrityError`` if that is
        not what was dumped.
        """


@runtime_checkable
class RestoresTables(Protocol):
    """An optional capability of a connector or an artifact kind: its ``prepare`` and its ``preflight`` heed
    ``RestoreRequest.tables``. One that lacks it is never asked with any: it would restore the whole.

    With tables, ``prepare`` keeps nothing beside the target: it calls ``RestoreRequest.safety`` before it changes
    anything, whatever ``KeepsReplaced`` says of the whole; only one that ``KeepsTables`` does otherwise. It refuses, by
    name and before it changes anything, a table that isn't in the snapshot or in the target, whose columns differ, or
    that the journal needs. Every other row of the target stays as it is, also where a foreign key would take it along;
    one that would point at nothing afterwards fails the restore.
    """

    def restores_tables(self, subject: str) -> bool:
        """Whether single tables of *subject* can be restored. Asks no server."""


@runtime_checkable
class KeepsTables(Protocol):
    """An optional capability of what has ``RestoresTables`` and ``KeepsReplaced``: to keep the rows that single tables
    had beside the target, under the mark of their restore.

    They are kept as they are in the moment in which they are replaced: no write that anybody commits to them is lost,
    and no safety copy is needed. ``bring_back`` of such a mark brings back these tables alone.
    """

    def keeps_tables(self, subject: str) -> bool:
        """Whether a restore of single tables of *subject* keeps what it replaces. Asks no server."""


@runtime_checkable
class Drills(Protocol):
    """An optional capability of a connector: its ``prepare`` heeds ``RestoreRequest.drill``, and builds what is
    ``Inspectable``. One that keeps what it replaces (``KeepsReplaced``) has it."""

    def drills(self, subject: str) -> bool:
        """Whether a state of *subject* can be built only to be looked at."""


@runtime_checkable
class SetsAside(Protocol):
    """An optional capability of a connector or an artifact kind: its restore takes the rows of ``preserve_tables`` out
    and puts them back afterwards. What somebody else writes to them in between is lost."""

    def sets_aside(self, subject: str) -> bool:
        """Whether a restore of *subject* does so."""
