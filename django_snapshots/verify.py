"""Proof that what is stored is what was written.

Level 1: the manifest is whole, every file is there and has its length. Level 2: every stored byte has its digest.
Level 3: every file unpacks to what was dumped, and its format is whole (``examine.py``). Level 4 is a drill.
An archive holds nothing else either: its headers and its end are looked at on every level, its padding from the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django_snapshots.catalog import Catalog, Reader
from django_snapshots.examine import Examined
from django_snapshots.exceptions import SnapshotIntegrityError, SnapshotNotFoundError
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.pipeline.digest import stored_tally
from django_snapshots.pipeline.stream import Watch, chain, closing_chunks

Observe = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verify looked at; that it exists means that nothing was wrong."""

    name: str
    level: int
    size: int
    """Bytes that were looked at: stored bytes."""
    filenames: tuple[str, ...]
    examined: tuple[Examined, ...] = ()
    """On level 3, what each file holds."""

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        told = {"examined": [item.to_json() for item in self.examined]} if self.level >= 3 else {}
        return {"name": self.name, "level": self.level, "size": self.size, "files": list(self.filenames), **told}


def verify(
    catalog: Catalog,
    name: str | None,
    *,
    level: int = 2,
    observe: Observe = lambda _: None,
    examine: Callable[[Snapshot], Sequence[Examined]] = lambda _: (),
) -> VerifyReport:
    """Verify the snapshot called *name*, or the latest.

    *observe* is told the length of every chunk that was read, and may raise. *examine* looks into every file, on level
    3, and proves the digests while it does. Raises ``SnapshotIntegrityError`` that names every file with something
    wrong, not only the first.
    """
    snapshot = catalog.latest() if name is None else catalog.get(name)
    with catalog.reader(snapshot) as reader:
        problems = _problems(reader, snapshot.artifacts, level if level < 3 else 1, observe) or _at_the_end(reader)
    _refuse(snapshot, problems)
    examined = tuple(examine(snapshot)) if level >= 3 else ()
    return VerifyReport(
        name=snapshot.name,
        level=level,
        size=snapshot.size,
        filenames=tuple(artifact.filename for artifact in snapshot.artifacts),
        examined=examined,
    )


def check_artifacts(
    catalog: Catalog,
    snapshot: Snapshot,
    artifacts: Sequence[ArtifactRecord],
    *,
    level: int,
    observe: Observe = lambda _: None,
) -> None:
    """Look at each of *artifacts*, and at what would lie behind the last one of all; raise ``SnapshotIntegrityError``
    with everything that is wrong."""
    with catalog.reader(snapshot) as reader:
        problems = _problems(reader, artifacts, level, observe) or _at_the_end(reader)
    _refuse(snapshot, problems)


def _refuse(snapshot: Snapshot, problems: Sequence[str]) -> None:
    if problems:
        raise SnapshotIntegrityError(
            f"Snapshot {snapshot.name!r} is damaged, do not restore from it: {'; '.join(problems)}."
        )


def _problems(reader: Reader, artifacts: Sequence[ArtifactRecord], level: int, observe: Observe) -> list[str]:
    found = (_problem(reader, artifact, level, observe) for artifact in artifacts)
    return [problem for problem in found if problem]


def _problem(reader: Reader, artifact: ArtifactRecord, level: int, observe: Observe) -> str | None:
    try:
        size = reader.size_of(artifact)
        if size != artifact.size:
            return f"{artifact.filename} has {size} bytes instead of {artifact.size}"
        if level < 2:
            return None
        tally = stored_tally()
        with closing_chunks(reader.open(artifact)) as chunks:
            for _ in chain(Watch(observe), tally)(chunks):
                pass
    except SnapshotNotFoundError:
        return f"{artifact.filename} is missing"
    except SnapshotIntegrityError as error:
        return f"{artifact.filename}: {error}"
    if (tally.size, tally.digest) != (artifact.size, artifact.checksum):
        return f"{artifact.filename} was changed after it was written: its SHA-256 does not match"
    return None


def _at_the_end(reader: Reader) -> list[str]:
    try:
        reader.check_end()
    except SnapshotIntegrityError as error:
        return [str(error)]
    return []
