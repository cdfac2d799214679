"""What an artifact kind may offer beyond ``ArtifactKind``, and what holds for one that doesn't."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.exceptions import SnapshotNotFoundError
from django_snapshots.replaced import (
    Beside,
    Drills,
    Examines,
    Finding,
    KeepsReplaced,
    KeepsTables,
    Outcome,
    Preflights,
    RestoresTables,
    SetsAside,
)
from django_snapshots.transfer import EndsSessions, Identified, Prepared, RestoreRequest, Source


def identity_of(kind: ArtifactKind, subject: str) -> str:
    """What *subject* physically is; empty for a kind that doesn't say, which nothing locks."""
    return kind.identity(subject) if isinstance(kind, Identified) else ""


def end_sessions_of(kind: ArtifactKind, subject: str, labels: Sequence[str]) -> int:
    """End the server sessions that attempts of these *labels* have left; 0 for a kind that has none.

    Raises ``SnapshotError`` if they are there and can't be ended: then the step must not be taken over yet.
    """
    return kind.end_sessions(subject, labels) if isinstance(kind, EndsSessions) else 0


def keeps_of(kind: ArtifactKind, subject: str, tables: Collection[str] = ()) -> bool:
    """Whether a restore of *subject*, or of these *tables* of it alone, keeps what it replaces beside it."""
    if tables:
        return isinstance(kind, KeepsTables) and kind.keeps_tables(subject)
    return isinstance(kind, KeepsReplaced) and kind.keeps(subject)


def beside_of(kind: ArtifactKind, subject: str) -> Sequence[Beside]:
    """What restores have left beside *subject*, the newest first."""
    return kind.beside(subject) if isinstance(kind, KeepsReplaced) else ()


def settle_of(kind: ArtifactKind, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
    """End what a dead attempt has begun on *subject*, and say what came of it."""
    return kind.settle(subject, mark, noted) if isinstance(kind, KeepsReplaced) else Outcome.UNSEEN


def is_provable(kind: ArtifactKind, subject: str) -> bool:
    """Whether *kind* can tell later what an attempt has made of *subject*."""
    connector = getattr(kind, "connector", None)
    return isinstance(connector(subject) if callable(connector) else kind, KeepsReplaced)


def bring_back_of(kind: ArtifactKind, subject: str, mark: str, request: RestoreRequest) -> Prepared:
    """Prepare to put a kept state in the place of *subject*. Raises ``SnapshotNotFoundError``."""
    if not isinstance(kind, KeepsReplaced):
        raise SnapshotNotFoundError(f"Nothing is kept beside {kind.type} {subject!r}.")
    return kind.bring_back(subject, mark, request)


def remove_of(kind: ArtifactKind, subject: str, mark: str) -> None:
    """Remove what carries *mark* beside *subject*."""
    if isinstance(kind, KeepsReplaced):
        kind.remove(subject, mark)


def preflight_of(kind: ArtifactKind, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
    """What stands in the way of a restore of *subject*, as far as its kind can say beforehand."""
    return kind.preflight(subject, source, request) if isinstance(kind, Preflights) else ()


def examine_of(kind: ArtifactKind, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any] | None:
    """What *source* holds, as far as its kind can look into it; ``None`` for one that can't.

    Raises ``SnapshotIntegrityError`` if it is not what was dumped.
    """
    return kind.examine(subject, source, request) if isinstance(kind, Examines) else None


def restores_tables_of(kind: ArtifactKind, subject: str) -> bool:
    """Whether single tables of *subject* can be restored."""
    return isinstance(kind, RestoresTables) and kind.restores_tables(subject)


def drills_of(kind: ArtifactKind, subject: str) -> bool:
    """Whether *subject* can be restored only to be looked at."""
    return isinstance(kind, Drills) and kind.drills(subject)


def sets_aside_of(kind: ArtifactKind, subject: str) -> bool:
    """Whether a restore of *subject* loses what others write to preserved tables meanwhile."""
    return isinstance(kind, SetsAside) and kind.sets_aside(subject)
