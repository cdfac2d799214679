"""A storage's entries and a manifest, prepared for a page: all of it is hostile until a template escapes it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from django.utils import timezone

from django_snapshots import runs
from django_snapshots.admin.shown import mapping_of, shown_json, shown_subject, shown_time, text_of, texts_of
from django_snapshots.catalog import Catalog, Entry
from django_snapshots.connectors.single_tables import told
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.manifest import ArtifactRecord, Safety, Snapshot
from django_snapshots.models import Kind, Run, State
from django_snapshots.plan import DRILL_LEVEL
from django_snapshots.proof import DAMNING, KINDS, Proof, Proofs, proofs_of, standing
from django_snapshots.redaction import redact
from django_snapshots.sizes import human_duration, human_size


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the last verify or drill of a snapshot has said."""

    text: str
    run: Any = None
    """Its run, if this journal has it."""
    at: datetime | None = None
    """When it ended; aware."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the list of snapshots."""

    name: str
    taken: str = ""
    size: str = ""
    contents: str = ""
    state: str = "succeeded"
    label: str = "Complete"
    reason: str = ""
    verified: Result | None = None
    drilled: Result | None = None
    pin: str = ""
    """Why it stays, if it is pinned."""
    safety: str = ""
    """What it is for, if it is a safety copy."""
    warnings: int = 0
    """How many sentences its dumps have to say."""


def rows(entries: Sequence[Entry], catalog: Catalog) -> list[Row]:
    """Lines for *entries*, each with its pin, and with what the journal and the notes beside it know of it."""
    snapshots = [entry.snapshot for entry in entries if entry.snapshot is not None]
    beside = {snapshot.name: proofs_of(catalog, snapshot) for snapshot in snapshots}
    journal = {kind: _Journal.of(snapshots, kind) for kind in KINDS}
    judged = runs.judged(snapshots)
    return [
        _row(
            entry,
            catalog,
            {kind: _last(kind, journal[kind], entry.name, beside.get(entry.name)) for kind in KINDS},
            standing([*judged.get(entry.name, ()), *_found(beside.get(entry.name))]),
        )
        for entry in entries
    ]


def _row(entry: Entry, catalog: Catalog, results: Mapping[str, Result | None], damage: str) -> Row:
    if entry.snapshot is None:
        return Row(name=entry.name, state="failed", label="Unreadable", reason=str(entry.error))
    return Row(
        name=entry.name,
        taken=shown_time(entry.snapshot.created_at),
        size=human_size(entry.snapshot.size),
        contents=", ".join(artifact.subject for artifact in entry.snapshot.artifacts),
        state="failed" if damage else "succeeded",
        label=("Failed its drill" if damage.startswith("failed") else "Damaged") if damage else "Complete",
        reason=damage,
        verified=results["verify"],
        drilled=results["drill"],
        pin=_pin(catalog, entry.snapshot),
        safety=_safety(entry.snapshot.safety),
        warnings=sum(_count_of_warnings(record) for record in entry.snapshot.artifacts),
    )


def _pin(catalog: Catalog, snapshot: Snapshot) -> str:
    try:
        return str(catalog.pin(snapshot) or "")
    except Exception as error:  # noqa: BLE001 - a storage may be anybody's, and this is one line of a page
        return f"whether it is pinned can't be told: {redact(str(error))}"


def _safety(safety: Safety | None) -> str:
    if safety is None:
        return ""
    part = f" of {told(safety.tables)}" if safety.tables else ""
    return f"for the undo{part} of the restore {safety.restore}, until {shown_time(safety.expires_at)}"


def _count_of_warnings(record: ArtifactRecord) -> int:
    metadata = mapping_of(record.metadata)
    return len(texts_of(metadata.get("warnings"))) + len(texts_of(metadata.get("unreadable")))


def _found(beside: Proofs | None) -> Sequence[Proof]:
    return tuple(beside.found.values()) if beside is not None else ()


@dataclass(frozen=True, kw_only=True)
class _Journal:
    """What the journal has of one kind of proof, by the names of snapshots."""

    proofs: Mapping[str, Run]
    """The last run that has proved something: that all is well, or that something is wrong."""
    hindered: Mapping[str, Run]
    """The last one that failed and says nothing of the snapshot: a server was away, a right was missing."""

    @classmethod
    def of(cls, snapshots: Sequence[Snapshot], kind: str) -> _Journal:
        """A run of an earlier snapshot of that name doesn't count."""
        taken = {snapshot.name: snapshot.created_at for snapshot in snapshots}
        ended = Run.objects.using(runs.alias()).filter(
            kind=kind, state__in=(State.SUCCEEDED, State.FAILED), name__in=list(taken)
        )
        proofs: dict[str, Run] = {}
        hindered: dict[str, Run] = {}
        if kind != Kind.DRILL:
            ended = ended.defer("result")  # which names every file; a drill's says how long the restores took
        for run in ended.order_by("finished_at"):
            if _aware(run.created_at) >= taken[run.name]:
                speaks = run.state == State.SUCCEEDED or run.error_type in DAMNING[kind]
                (proofs if speaks else hindered)[run.name] = run
        return cls(proofs=proofs, hindered=hindered)


def _last(kind: str, journal: _Journal, name: str, beside: Proofs | None) -> Result | None:
    """The last proof, and that there was a later try in vain, if there was one."""
    found, hindered = _last_proof(kind, journal.proofs.get(name), beside), journal.hindered.get(name)
    if hindered is None or (found is not None and found.at is not None and found.at >= _ended(hindered)):
        return found
    vain = f"not made, {shown_time(hindered.finished_at)}"
    if found is None:
        return Result(text=vain, run=hindered.pk)
    return replace(found, text=f"{found.text}; a later one was {vain}")


def _last_proof(kind: str, journal: Run | None, beside: Proofs | None) -> Result | None:
    """The later of what the journal has and what is noted beside the snapshot, which may be of another journal."""
    proof = beside.found.get(kind) if beside is not None else None
    if journal is not None and (proof is None or proof.run == str(journal.pk) or proof.at <= _ended(journal)):
        return _of_journal(journal)
    if proof is not None:
        text = f"level {proof.level}, {shown_time(proof.at)}" if proof.ok else f"failed, {shown_time(proof.at)}"
        took = _restored_in(proof.seconds) if proof.ok and kind == Kind.DRILL else ""
        return Result(text=f"{text}{took}", at=proof.at)
    if beside is not None and kind in beside.unreadable:
        return Result(text=f"unknown: {beside.unreadable[kind]}")
    return None


def _aware(moment: datetime) -> datetime:
    """A moment of the journal, which is naive in a project without ``USE_TZ``."""
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def _ended(run: Run) -> datetime:
    return _aware(run.finished_at or run.created_at)


def _of_journal(run: Run) -> Result:
    when, at = shown_time(run.finished_at), _ended(run)
    if run.state == State.SUCCEEDED and run.kind == Kind.DRILL:
        seconds = [item["seconds"] for item in (run.result or {}).get("databases", ())]
        took = _restored_in(sum(seconds) if seconds else None)
        return Result(text=f"level {DRILL_LEVEL}, {when}{took}", run=run.pk, at=at)
    if run.state == State.SUCCEEDED:
        return Result(text=f"level {run.request.get('level', 2)}, {when}", run=run.pk, at=at)
    if run.error_type == SnapshotIntegrityError.__name__:
        return Result(text=f"damage found, {when}", run=run.pk, at=at)
    return Result(text=f"failed, {when}", run=run.pk, at=at)


def _restored_in(seconds: float | None) -> str:
    return "" if seconds is None else f", restored in {human_duration(seconds)}"


def run_of(snapshot: Snapshot) -> Run | None:
    """The run that took it, if this journal has it."""
    try:
        pk = uuid.UUID(snapshot.run)
    except ValueError:
        return None
    return Run.objects.using(runs.alias()).filter(pk=pk).first()


def facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    """What the manifest says of the whole snapshot."""
    told = (
        ("Taken", shown_time(snapshot.created_at)),
        ("Taken (UTC)", snapshot.created_at.astimezone(UTC).isoformat()),
        ("Size", human_size(snapshot.size)),
        ("Project", snapshot.project),
        ("Environment", snapshot.environment),
        ("Host", snapshot.hostname),
        ("Django", snapshot.django_version),
        ("Python", snapshot.python_version),
        ("Encrypted", "yes" if snapshot.encrypted else "no"),
        ("Storage's id", snapshot.storage),
        ("Manifest's version", snapshot.version),
    )
    return [(title, value) for title, value in told if value]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One stored file, as a page shows it."""

    title: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    counts: list[tuple[str, str]]
    counts_summary: str
    migrations: list[str]
    unreadable: list[str]


def artifact(record: ArtifactRecord) -> Artifact:
    """Everything that a person asks of one stored file."""
    metadata = mapping_of(record.metadata)
    counts = mapping_of(metadata.get("row_counts"))
    return Artifact(
        title=shown_subject(record),
        facts=_artifact_facts(record),
        warnings=texts_of(metadata.get("warnings")),
        unreadable=texts_of(metadata.get("unreadable")),
        counts=[(name, text_of(count) or shown_json(count)) for name, count in counts.items()],
        counts_summary=_counts_summary(counts, exact=metadata.get("row_counts_exact") is True),
        migrations=texts_of(metadata.get("migrations")),
    )


def _artifact_facts(record: ArtifactRecord) -> list[tuple[str, str]]:
    metadata = mapping_of(record.metadata)
    content_size = metadata.get("content_size")
    engine = " ".join(filter(None, (text_of(metadata.get("engine")), text_of(metadata.get("server_version")))))
    told = (
        ("File", record.filename),
        ("Stored", human_size(record.size)),
        ("Content", human_size(content_size) if isinstance(content_size, int) else ""),
        ("Checksum of the file", record.checksum),
        ("Its moment", shown_time(record.created_at)),
        ("Engine", engine),
        ("Client", text_of(metadata.get("client_version"))),
        ("Connector", text_of(metadata.get("connector"))),
        ("Compression", text_of(metadata.get("compression"))),
    )
    return [(title, value) for title, value in told if value]


def _counts_summary(counts: Any, *, exact: bool) -> str:
    if not counts:
        return ""
    total = sum(count for count in counts.values() if isinstance(count, int))
    return f"{total:,} rows in {len(counts):,} tables{'' if exact else ', not exact'}"
