"""Proof that what is stored is what was written.

Level 1: the manifest is whole, every file is there and has its length. Level 2: every stored byte has its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django_snapshots.catalog import Catalog
from django_snapshots.exceptions import SnapshotIntegrityError, SnapshotNotFoundError
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.pipeline.digest import stored_tally
from django_snapshots.pipeline.stream import Watch, chain
from django_snapshots.storage.streams import read_chunks

Observe = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verify looked at; that it exists means that nothing was wrong."""

    name: str
    level: int
    size: int
    """Bytes that were looked at: stored bytes."""
    filenames: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        return {"name": self.name, "level": self.level, "size": self.size, "files": list(self.filenames)}


def verify(catalog: Catalog, name: str | None, *, level: int = 2, observe: Observe = lambda _: None) -> VerifyReport:
    """Verify the snapshot called *name*, or the latest.

    *observe* is told the length of every chunk that was read, and may raise. Raises ``SnapshotIntegrityError`` that
    names every file with something wrong, not only the first.
    """
    snapshot = catalog.latest() if name is None else catalog.get(name)
    check_artifacts(catalog, snapshot, snapshot.artifacts, level=level, observe=observe)
    return VerifyReport(
        name=snapshot.name,
        level=level,
        size=snapshot.size,
        filenames=tuple(artifact.filename for artifact in snapshot.artifacts),
    )


def check_artifacts(
    catalog: Catalog,
    snapshot: Snapshot,
    artifacts: Sequence[ArtifactRecord],
    *,
    level: int,
    observe: Observe = lambda _: None,
) -> None:
    """Look at each of *artifacts*; raise ``SnapshotIntegrityError`` with everything that is wrong."""
    problems = [
        problem
        for artifact in artifacts
        if (problem := _problem(catalog, catalog.path(snapshot.name, artifact.filename), artifact, level, observe))
    ]
    if problems:
        raise SnapshotIntegrityError(
            f"Snapshot {snapshot.name!r} is damaged, do not restore from it: {'; '.join(problems)}."
        )


def _problem(catalog: Catalog, path: str, artifact: ArtifactRecord, level: int, observe: Observe) -> str | None:
    try:
        size = catalog.size(path)
        if size != artifact.size:
            return f"{artifact.filename} has {size} bytes instead of {artifact.size}"
        if level < 2:
            return None
        tally = stored_tally()
        for _ in chain(Watch(observe), tally)(read_chunks(catalog.storage, path)):
            pass
    except SnapshotNotFoundError:
        return f"{artifact.filename} is missing"
    except SnapshotIntegrityError as error:
        return f"{artifact.filename}: {error}"
    if (tally.size, tally.digest) != (artifact.size, artifact.checksum):
        return f"{artifact.filename} was changed after it was written: its SHA-256 does not match"
    return None
