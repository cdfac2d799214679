"""What an artifact kind may offer beyond ``ArtifactKind``, and what holds for one that doesn't."""

from __future__ import annotations

from collections.abc import Sequence

from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.transfer import EndsSessions, Identified


def identity_of(kind: ArtifactKind, subject: str) -> str:
    """What *subject* physically is; empty for a kind that doesn't say, which nothing locks."""
    return kind.identity(subject) if isinstance(kind, Identified) else ""


def end_sessions_of(kind: ArtifactKind, subject: str, labels: Sequence[str]) -> int:
    """End the server sessions that attempts of these *labels* have left; 0 for a kind that has none.

    Raises ``SnapshotError`` if they are there and can't be ended: then the step must not be taken over yet.
    """
    return kind.end_sessions(subject, labels) if isinstance(kind, EndsSessions) else 0
