"""What an artifact kind may offer beyond ``ArtifactKind``, and what holds for one that doesn't."""

from __future__ import annotations

from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.transfer import Identified


def identity_of(kind: ArtifactKind, subject: str) -> str:
    """What *subject* physically is; empty for a kind that doesn't say, which nothing locks."""
    return kind.identity(subject) if isinstance(kind, Identified) else ""
