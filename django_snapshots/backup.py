"""The journey of a snapshot: each artifact from its dump through the pipeline into storage, then the manifest.

Knows neither Celery nor the journal: ``execution/`` calls it from a task or in this process.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import django

from django_snapshots import emptied
from django_snapshots.artifacts.environment import installed_packages
from django_snapshots.catalog import Catalog, StoredArtifact
from django_snapshots.conf import Settings
from django_snapshots.emptied import EMPTIED
from django_snapshots.exceptions import SnapshotCancelled, SnapshotEmptiedError, SnapshotIntegrityError
from django_snapshots.manifest import ArtifactRecord, Safety, Snapshot, plain_json
from django_snapshots.pipeline.compression import NO_COMPRESSION, Compression
from django_snapshots.pipeline.digest import content_tally, stored_tally
from django_snapshots.pipeline.stream import Watch, chain, closing_chunks
from django_snapshots.plan import PlannedStep, SnapshotPlan, attempt_filename, plain_filename
from django_snapshots.processes import Processes
from django_snapshots.storage.streams import write_chunks
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import Dump, DumpRequest


@dataclass(frozen=True, kw_only=True)
class Observer:
    """What one attempt tells whoever keeps the journal. Each of them may raise to end the attempt."""

    opened: Callable[[str, datetime], None] = lambda _filename, _moment: None
    """The object's file name and the content's moment, before the first byte is stored."""
    moved: Callable[[int], None] = lambda _count: None
    """So many bytes of plain content went by."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at one step of a snapshot."""

    plan: SnapshotPlan
    step: PlannedStep
    token: int
    processes: Processes
    exclude_tables: frozenset[str] = frozenset()
    exclude_data: frozenset[str] = frozenset()
    """Tables of the alias whose rows are left out."""
    observer: Observer = Observer()

    def moved(self, count: int) -> None:
        """So many bytes of plain content went by; raises ``SnapshotCancelled`` once the attempt has been ended."""
        if self.processes.ended:
            raise SnapshotCancelled("The run has been ended.")
        self.observer.moved(count)

    @property
    def label(self) -> str:
        """Names the attempt to servers."""
        return f"django-snapshots {self.plan.run}-{self.step.position}-{self.token}"


def dump_artifact(settings: Settings, attempt: Attempt) -> StoredArtifact:
    """Dump one artifact into storage in one pass, under a name that is this attempt's alone.

    Raises ``SnapshotError`` with the first cause; then nothing is stored under that name.
    """
    kind = settings.kind(attempt.step.type)
    compression = settings.compression if getattr(kind, "compress", True) else NO_COMPRESSION
    request = DumpRequest(
        processes=attempt.processes,
        label=attempt.label,
        exclude_tables=attempt.exclude_tables,
        exclude_data=attempt.exclude_data,
        temporary_directory=lambda: private_directory(settings.temporary_directory),
    )
    with kind.open_dump(attempt.step.subject, request) as dump:
        return _store(settings, attempt, dump, compression)


def _store(settings: Settings, attempt: Attempt, dump: Dump, compression: Compression) -> StoredArtifact:
    plan, step = attempt.plan, attempt.step
    suffix = f"{dump.suffix}{compression.suffix}"
    filename = attempt_filename(plan.run, step.position, attempt.token, step.subject, suffix)
    attempt.observer.opened(filename, dump.started_at)
    content, stored = content_tally(), stored_tally()
    stages = chain(Watch(attempt.moved), content, compression.compressor(), stored)
    catalog = Catalog(settings.storage)
    with closing_chunks(stages(dump.chunks)) as chunks:
        write_chunks(settings.storage, catalog.path(plan.name, filename), chunks)
    if content.size == 0 and step.type == "database":
        raise SnapshotIntegrityError(f"The dump of {step.subject!r} is empty.")
    left_out = {"data_excluded": sorted(attempt.exclude_data)} if attempt.exclude_data else {}
    metadata = {
        **plain_json(dump.metadata(), f"The metadata that the dump of {step.subject!r} gives for the manifest"),
        **left_out,
        "subject": step.subject,
        "content_size": content.size,
        "content_digest": content.digest,
        "compression": compression.algorithm,
        "encryption": None,
    }
    record = ArtifactRecord(
        type=step.type,
        filename=filename,
        size=stored.size,
        checksum=stored.digest,
        created_at=dump.started_at,
        metadata=metadata,
    )
    return StoredArtifact(record=record, plain_filename=plain_filename(step.subject, suffix))


def publish(
    settings: Settings,
    plan: SnapshotPlan,
    stored: Sequence[StoredArtifact],
    *,
    storage_id: str,
    safety: Safety | None = None,
    gate: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
    retreat: Callable[[Exception], bool] = lambda _error: True,
    allow_empty: bool = False,
) -> Snapshot:
    """Write the manifest of a snapshot whose artifacts are all stored; only then does it exist.

    What is empty where the snapshot before wasn't raises ``SnapshotEmptiedError``; with *allow_empty*, or if
    ``SNAPSHOTS["EMPTY"]`` is ``"warn"``, it is a warning in the manifest, as a great loss of rows always is.
    *safety* makes it the safety copy of a restore, which may be of anything. *gate* is passed once, before anything
    takes a name of the snapshot's own; *check* is called again and again until the manifest is there; both may raise.
    *retreat* is asked, with the error, before anything is taken back.
    """
    records = [artifact.record for artifact in stored]
    moments = [record.created_at for record in records if record.type == "database"]
    snapshot = Snapshot(
        name=plan.name,
        created_at=min(moments or [record.created_at for record in records]),
        run=plan.run,
        storage=storage_id,
        artifacts=tuple(records),
        django_version=django.get_version(),
        python_version=platform.python_version(),
        hostname=socket.gethostname(),
        project=settings.project,
        environment=settings.environment,
        pip=tuple(installed_packages()),
        metadata=dict(plan.metadata),
        safety=safety,
    )
    catalog = Catalog(settings.storage)
    if safety is None:
        stored = _compared(catalog, snapshot, stored, refuse=settings.empty == "refuse", meant=allow_empty)
    return catalog.publish(
        replace(snapshot, artifacts=tuple(item.record for item in stored)),
        stored,
        form=settings.format,
        gate=gate,
        check=check,
        retreat=retreat,
    )


def _compared(
    catalog: Catalog, snapshot: Snapshot, stored: Sequence[StoredArtifact], *, refuse: bool, meant: bool
) -> list[StoredArtifact]:
    """*stored*, each with a warning for what it lacks of what was in the snapshot before.

    What is *meant* to be empty is never refused, and is what the next one is compared with.
    """
    others = [entry.snapshot for entry in catalog.entries() if entry.snapshot is not None]
    compared: list[StoredArtifact] = []
    refused: list[str] = []
    for item in stored:
        before = emptied.predecessor_of(snapshot, others, item.record)
        found = [] if before is None else list(emptied.losses(item.record, before))
        whole = [loss.text for loss in found if loss.whole and not meant]
        refused += whole if refuse else []
        compared.append(_warned(item, [loss.text for loss in found], emptied=bool(whole)))
    if refused:
        raise SnapshotEmptiedError(
            f"{snapshot.name!r} was not taken, because nothing is left of what the snapshot before it has. "
            f"{' '.join(refused)} Is a disk not mounted, a database made anew? If that is how it should be, say so "
            '(allow_empty=True, or --allow-empty), or set SNAPSHOTS["EMPTY"] to "warn".'
        )
    return compared


def _warned(item: StoredArtifact, sentences: list[str], *, emptied: bool) -> StoredArtifact:
    if not sentences:
        return item
    known = item.record.metadata.get("warnings")
    metadata = {**item.record.metadata, "warnings": [*(known if isinstance(known, list) else []), *sentences]}
    if emptied:
        metadata[EMPTIED] = True
    return replace(item, record=replace(item.record, metadata=metadata))


def withdraw(settings: Settings, name: str, run: str, filenames: Sequence[str]) -> None:
    """Remove what attempts of *run* (32 hex digits) stored and its manifest, if there is one, does not name."""
    Catalog(settings.storage).withdraw(name, run, filenames)


def utc_now() -> datetime:
    """Now, aware and in UTC."""
    return datetime.now(UTC)
