"""What an artifact kind is: the same shape as a streaming connector, with a list of its subjects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, Target


@runtime_checkable
class ArtifactKind(Protocol):
    """Dumps and restores one kind of artifact, each of its subjects as one stored file.

    Structural like a connector: no base class is needed.
    """

    type: str
    """Names the kind in settings and in the manifest; ``[a-z][a-z0-9_]*``."""

    def subjects(self) -> Sequence[str]:
        """What there is to dump: the aliases of a project for databases; one name for a kind that has one file.
        It begins the file's name."""

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Fix the moment, start the dump. Leaving the context ends and removes everything that it started."""

    def target(self, subject: str) -> Target:
        """Describe what a restore would replace; changes nothing."""

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Build the new state beside the target. Raises without leaving anything behind."""
