"""The journey back: manifest, preflight, digests, then every target by ``switching``.

Knows neither Celery nor the journal.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from django_snapshots import partial_restore, preflight
from django_snapshots.artifacts.capabilities import bring_back_of, is_provable, keeps_of, preflight_of
from django_snapshots.backup import utc_now
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.connectors.derived import base_of, beside, ensure
from django_snapshots.content import read_content
from django_snapshots.exceptions import (
    SnapshotConfirmationError,
    SnapshotError,
    SnapshotPreflightError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot, to_iso
from django_snapshots.plan import Request
from django_snapshots.processes import Processes
from django_snapshots.replaced import TAKEN_BACK
from django_snapshots.safety import Safekeeping
from django_snapshots.switching import Change, Moves, carry_out, request_for
from django_snapshots.transfer import RestoreRequest, Source, Target
from django_snapshots.verify import check_artifacts


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One artifact to restore and what it would replace."""

    record: ArtifactRecord
    target: Target
    subject: str
    """What is replaced: the record's own subject, unless it is restored into another database."""
    tables: tuple[str, ...] = ()
    """The only tables of it whose rows are replaced; empty for the whole."""


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """What a restore did."""

    name: str
    restored: tuple[Selection, ...]
    notes: tuple[str, ...]
    run: str = ""
    """What ``undo`` names it by."""
    kept: tuple[str, ...] = ()
    """The targets whose old state is kept beside them."""
    safety: tuple[str, ...] = ()
    """The safety copies that were taken of the others."""

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        return {
            "name": self.name,
            "restored": [
                {
                    "type": item.record.type,
                    "subject": item.record.subject,
                    "target": item.target.description,
                    **({"tables": list(item.tables)} if item.tables else {}),
                }
                for item in self.restored
            ],
            "notes": list(self.notes),
            "undo": self.run if self.kept or self.safety else None,
            "kept": list(self.kept),
            "safety": list(self.safety),
        }


@dataclass(frozen=True, kw_only=True)
class RestoreAttempt:
    """One attempt at a restore."""

    request: Request
    processes: Processes
    label: str = "django-snapshots"
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """32 hex digits; with *token* it makes the marks of what is left beside the targets."""
    token: int = 1
    preserve_tables: frozenset[str] = frozenset()
    """The tables of every database that stay as they are."""
    announce: Callable[[Sequence[Change]], None] = lambda _: None
    """Hears of every target and its mark before anything is built."""
    note: Callable[[str, Mapping[str, Any]], None] = lambda _mark, _facts: None
    """Keeps, durably, what proves the outcome of the switch of a mark."""
    safety_taken: Callable[[str, Snapshot], None] = lambda _mark, _snapshot: None
    """Hears of the safety copy of a mark's target."""
    before_switch: Callable[[Sequence[Change]], None] = lambda _: None
    """Reads what ``after_switch`` will need from the databases as they are."""
    point_of_no_return: Callable[[], None] = lambda: None
    """Passed right before the first switch; may raise, and then nothing is switched."""
    going_back: Callable[[], None] = lambda: None
    """Raises if it is for another attempt by now to bring back what this one has switched."""
    after_switch: Callable[[Sequence[Change]], None] = lambda _: None
    """Makes the journal fit the restored databases."""
    observe: Callable[[int], None] = lambda _: None
    """Told the length of every chunk that was read; may raise until the first switch, and isn't heeded after it."""


def select(settings: Settings, request: Request) -> tuple[Snapshot, tuple[Selection, ...]]:
    """Find the snapshot and what of it is asked for, with the targets; changes nothing.

    Raises ``SnapshotNotFoundError``, or ``SnapshotPreflightError`` with everything that stands in the way.
    """
    snapshot, selections, problems = _selected(settings, request)
    if problems:
        raise SnapshotPreflightError(preflight.refusal(snapshot.name, problems))
    return snapshot, selections


def _selected(settings: Settings, request: Request) -> tuple[Snapshot, tuple[Selection, ...], list[str]]:
    """As ``select``, but with what stands in the way instead of an error."""
    snapshot, records = chosen(settings, request)
    problems = [*_nowhere(records, request), *_of_elsewhere(settings, snapshot, request), *_not_in(snapshot, request)]
    selections: list[Selection] = []
    for record in records:
        try:
            subject, tables = subject_of(request, record), partial_restore.of_record(request, record)
            target = partial_restore.part_of(target_of(settings, record.type, subject), tables)
            selections.append(Selection(record=record, subject=subject, target=target, tables=tables))
            problems.extend(partial_restore.problems(settings.kind(record.type), record, subject, tables))
        except SnapshotError as error:
            problems.append(str(error))
    if not selections and not problems:
        problems.append("It holds nothing of what was asked for.")
    return snapshot, tuple(selections), [*problems, *_shared_targets(selections)]


def chosen(settings: Settings, request: Request) -> tuple[Snapshot, tuple[ArtifactRecord, ...]]:
    """The snapshot, and what of it is asked for, whether or not it can be restored here; looks at no target.

    Raises ``SnapshotNotFoundError``, ``SnapshotIntegrityError`` or ``SnapshotVersionError``.
    """
    catalog = Catalog(settings.storage)
    snapshot = catalog.latest() if request.name is None else catalog.get(request.name)
    return snapshot, tuple(
        record for record in snapshot.artifacts if is_asked_for(record.type, record.subject, request)
    )


def require_confirmation(snapshot: Snapshot, selections: Sequence[Selection], confirmed: Sequence[str]) -> None:
    """Raise ``SnapshotConfirmationError`` unless every target that isn't empty is named in *confirmed*."""
    missing = [item.target for item in selections if not item.target.empty and item.target.name not in confirmed]
    if missing:
        listed = ", ".join(target.description for target in missing)
        names = ", ".join(repr(target.name) for target in missing)
        raise SnapshotConfirmationError(
            f"Restoring {snapshot.name!r} would replace {listed}. Nothing was touched. "
            f"If that is what you want, confirm by name: confirm=[{names}]."
        )


def restore(settings: Settings, attempt: RestoreAttempt) -> RestoreReport:
    """Restore what ``attempt.request`` asks for.

    Raises ``SnapshotError``; the message says which state each target is in.
    """
    snapshot, selections = select(settings, attempt.request)
    require_confirmation(snapshot, selections, attempt.request.confirm)
    notes: list[str] = []
    observer = Observer(attempt.observe)
    attempt = replace(attempt, observe=observer)
    changes = changes_of(settings, attempt, snapshot, selections, notes)
    sources = [source_of(settings, snapshot, item.record, observer) for item in selections]
    notes += preflight.passed(snapshot, list(zip(changes, sources, strict=True)), settings.storage)
    records = [item.record for item in selections]
    check_artifacts(Catalog(settings.storage), snapshot, records, level=2, observe=attempt.observe)
    safety = replace_all(settings, attempt, changes, observer)
    return RestoreReport(
        name=snapshot.name,
        restored=selections,
        notes=tuple(notes),
        run=attempt.run,
        safety=safety,
        kept=tuple(change.target.description for change in changes if change.keeps and not change.target.empty),
    )


def look(settings: Settings, attempt: RestoreAttempt) -> preflight.Report:
    """Everything that stands in the way of what ``attempt.request`` asks for; touches nothing."""
    snapshot, selections, problems = _selected(settings, attempt.request)
    changes = changes_of(settings, attempt, snapshot, selections, [])
    sources = [source_of(settings, snapshot, item.record) for item in selections]
    return preflight.look(snapshot, list(zip(changes, sources, strict=True)), settings.storage, problems)


def replace_all(
    settings: Settings, attempt: RestoreAttempt, changes: Sequence[Change], observer: Observer
) -> tuple[str, ...]:
    """Carry *changes* out, with what the attempt wants around it; return the names of the safety copies."""
    keeping = Safekeeping(
        settings=settings, run=attempt.run, token=attempt.token, processes=attempt.processes, observe=observer
    )
    taken: list[str] = []

    def take_safety(change: Change) -> None:
        snapshot = keeping.take(change, changes.index(change))
        attempt.safety_taken(change.mark, snapshot)
        taken.append(snapshot.name)

    def close_the_way_back() -> None:
        attempt.point_of_no_return()
        observer.heeded = False

    attempt.announce(changes)
    attempt.before_switch(changes)
    moves = Moves(
        safety=take_safety,
        point_of_no_return=close_the_way_back,
        switched=lambda: attempt.after_switch(changes),
        going_back=attempt.going_back,
    )
    carry_out(changes, moves)
    return tuple(taken)


def changes_of(
    settings: Settings,
    attempt: RestoreAttempt,
    snapshot: Snapshot,
    selections: Sequence[Selection],
    notes: list[str],
) -> list[Change]:
    """What is to be done to each target, in the order of *selections*; *notes* takes the sentences of the report."""
    return [_change(settings, attempt, snapshot, item, position, notes) for position, item in enumerate(selections)]


def _change(
    settings: Settings,
    attempt: RestoreAttempt,
    snapshot: Snapshot,
    item: Selection,
    position: int,
    notes: list[str],
) -> Change:
    record = item.record
    kind = settings.kind(record.type)
    source = source_of(settings, snapshot, record, attempt.observe)
    mark = mark_of(attempt, position)
    request = request_of(settings, attempt, record.type, item.subject, item.target, mark, snapshot.name, notes)
    request = partial_restore.only(request, item.tables)
    keeps = keeps_of(kind, item.subject, item.tables)
    request = replace(request, keeps=keeps)
    return Change(
        type=record.type,
        subject=item.subject,
        target=item.target,
        mark=mark,
        keeps=keeps,
        provable=is_provable(kind, item.subject),
        request=request,
        prepare=lambda request: kind.prepare(item.subject, source, request),
        preflight=lambda source: preflight_of(kind, item.subject, source, request),
        bring_back=partial(bring_back_of, kind, item.subject, mark) if keeps else None,
        look=lambda: kind.target(item.subject),
        about_back={TAKEN_BACK: True, "snapshot": ""},
    )


def mark_of(attempt: RestoreAttempt, position: int) -> str:
    """Names what this attempt leaves beside the target of that position."""
    return f"{attempt.run}_{attempt.token}_{position}"


def request_of(
    settings: Settings,
    attempt: RestoreAttempt,
    kind: str,
    subject: str,
    target: Target,
    mark: str,
    name: str,
    notes: list[str],
) -> RestoreRequest:
    """What is asked of one target; *name* is the snapshot's that replaces it, or empty."""
    now = utc_now()
    wanted = request_for(
        settings,
        processes=attempt.processes,
        label=attempt.label,
        report=lambda sentence: notes.append(f"{subject}: {sentence}"),
        preserve_tables=attempt.preserve_tables if kind == "database" else frozenset(),
        mark=mark,
        about={
            "run": attempt.run,
            "snapshot": name,
            "type": kind,
            "subject": subject,
            "target": target.name,
            "project": settings.project,
            "environment": settings.environment,
            "replaced_at": to_iso(now),
            "expires_at": to_iso(now + timedelta(seconds=settings.limits.safety_keep)),
        },
        note=lambda facts: attempt.note(mark, facts),
    )
    return replace(wanted, owner=False if attempt.request.no_owner else None, merge=attempt.request.merge)


def source_of(
    settings: Settings, snapshot: Snapshot, record: ArtifactRecord, observe: Callable[[int], None] = lambda _: None
) -> Source:
    """One stored artifact, as a restore reads it."""
    return Source(
        filename=record.filename,
        metadata=record.metadata,
        open=lambda: read_content(Catalog(settings.storage), snapshot, record, observe),
    )


class Observer:
    """Tells of every chunk; what it raises ends the restore until the first switch.

    A switch may read the dump: one that was ended there, by a cancel or a journal that is away for a moment, would
    leave its target neither what it was nor the snapshot.
    """

    def __init__(self, observe: Callable[[int], None]) -> None:
        self._observe = observe
        self.heeded = True

    def __call__(self, count: int) -> None:
        try:
            self._observe(count)
        except Exception:
            if self.heeded:
                raise


def forbidden(settings: Settings, request: Request) -> list[str]:
    """Why nothing may be restored here by *request*, if nothing may."""
    problems: list[str] = []
    if not settings.allow_restore:
        problems.append('SNAPSHOTS["ALLOW_RESTORE"] is False in this project.')
    if settings.allow_restore == "requested" and not request.granted:
        problems.append(
            'SNAPSHOTS["ALLOW_RESTORE"] is "requested" in this project: a restore is made by whoever has the right to, '
            "in the admin, by the command or by django_snapshots.request_restore(), and not by a task that anybody "
            "may send."
        )
    return problems


def _of_elsewhere(settings: Settings, snapshot: Snapshot, request: Request) -> list[str]:
    problems = forbidden(settings, request)
    if request.elsewhere:
        return problems
    for what, theirs, ours in (
        ("project", snapshot.project, settings.project),
        ("environment", snapshot.environment, settings.environment),
    ):
        if theirs != ours:
            problems.append(
                f"It is of the {what} {theirs!r}, this is {ours!r}; if it shall be restored here all the same, "
                "say so (elsewhere=True, or --elsewhere)."
            )
    return problems


def _not_in(snapshot: Snapshot, request: Request) -> list[str]:
    held = {record.type for record in snapshot.artifacts}
    return [
        *(f"It holds no database {alias!r}." for alias in request.databases or () if alias not in snapshot.databases),
        *(f"It holds no artifact {item!r}." for item in request.artifacts or () if item not in held),
        *contradiction(request),
        *(f"It holds no database {alias!r}." for alias in request.tables if alias not in snapshot.databases),
        *partial_restore.contradictions(request),
    ]


def contradiction(request: Request) -> list[str]:
    """What is wrong with the parts that *request* names, whatever there is."""
    if request.databases and request.artifacts is not None and "database" not in request.artifacts:
        return ["Databases are named, but the artifacts that are named leave them out."]
    return []


def is_asked_for(artifact: str, subject: str, request: Request) -> bool:
    """Whether *subject*, of the kind *artifact*, is among the parts that *request* names; all are if it names none."""
    if request.tables:
        return artifact == "database" and subject in request.tables
    if request.artifacts is not None and artifact not in request.artifacts:
        return False
    if request.databases is None:
        return True
    if artifact == "database":
        return subject in request.databases
    # Naming databases alone means just these.
    return request.artifacts is not None


def subject_of(request: Request, record: ArtifactRecord) -> str:
    """What a restore of *record* replaces. Raises ``SnapshotConfigurationError``."""
    if record.type != "database":
        return record.subject
    alias = request.into.get(record.subject, record.subject)
    name = request.database_names.get(record.subject)
    return alias if name is None else beside(alias, name)


def _nowhere(records: Sequence[ArtifactRecord], request: Request) -> list[str]:
    """What is to go into another database, and isn't restored at all."""
    restored = {record.subject for record in records if record.type == "database"}
    unknown = sorted({*request.into, *request.database_names} - restored)
    return [f"{', '.join(map(repr, unknown))} is to go into another database, but is not restored."] if unknown else []


def target_of(settings: Settings, artifact: str, subject: str) -> Target:
    """What a restore of *subject* would replace. Raises ``SnapshotError``."""
    kind = settings.kind(artifact)
    known = base_of(ensure(subject)) if artifact == "database" else subject
    if known not in kind.subjects():
        raise SnapshotPreflightError(
            f"This project has no {artifact} {subject!r}; name what to restore, or add it to the settings."
        )
    return kind.target(subject)


def _shared_targets(selections: Sequence[Selection]) -> Iterator[str]:
    seen: dict[str, Selection] = {}
    for item in selections:
        identity = item.target.identity
        if identity and identity in seen:
            yield (
                f"{seen[identity].record.subject!r} and {item.record.subject!r} are the same thing, "
                f"{item.target.description}; restore one of them."
            )
        seen[identity] = item
