"""The journey back: manifest, digests, targets, then prepare all, check all, switch all.

Who can die when, and what then holds (first version): until ``switch`` nothing of any target has changed, whatever
dies. If one target's ``switch`` raises, those before it are rolled back where their connector can; the error says
which targets hold the snapshot, which hold what they held, and which must be restored again.

Knows neither Celery nor the journal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.content import read_content
from django_snapshots.exceptions import (
    SnapshotConfirmationError,
    SnapshotError,
    SnapshotPreflightError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.plan import Request
from django_snapshots.processes import Processes
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import Prepared, RestoreRequest, Source, SwitchRank, Target
from django_snapshots.verify import check_artifacts

_NO_TABLES: Mapping[str, frozenset[str]] = {}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One artifact to restore and what it would replace."""

    record: ArtifactRecord
    target: Target


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """What a restore did."""

    name: str
    restored: tuple[Selection, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        return {
            "name": self.name,
            "restored": [
                {"type": item.record.type, "subject": item.record.subject, "target": item.target.description}
                for item in self.restored
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class RestoreAttempt:
    """One attempt at a restore."""

    request: Request
    processes: Processes
    label: str = "django-snapshots"
    preserve_tables: Mapping[str, frozenset[str]] = field(default_factory=lambda: _NO_TABLES)
    """For each alias, the tables that stay as they are."""
    before_switch: Callable[[Sequence[Selection]], None] = lambda _: None
    """Reads what ``after_switch`` will need from the databases as they are."""
    point_of_no_return: Callable[[], None] = lambda: None
    """Passed right before the first switch; may raise, and then nothing is switched."""
    after_switch: Callable[[Sequence[Selection]], None] = lambda _: None
    """Makes the journal fit the restored databases."""
    observe: Callable[[int], None] = lambda _: None
    """Told the length of every chunk that was read; may raise until the first switch, and isn't heeded after it."""


def select(settings: Settings, request: Request) -> tuple[Snapshot, tuple[Selection, ...]]:
    """Find the snapshot and what of it is asked for, with the targets; changes nothing.

    Raises ``SnapshotNotFoundError``, or ``SnapshotPreflightError`` with everything that stands in the way.
    """
    snapshot, records = chosen(settings, request)
    problems = [*_forbidden(settings, snapshot, request), *_not_in(snapshot, request)]
    selections: list[Selection] = []
    for record in records:
        try:
            selections.append(Selection(record=record, target=target_of(settings, record)))
        except SnapshotError as error:
            problems.append(str(error))
    if problems:
        raise SnapshotPreflightError(
            f"Snapshot {snapshot.name!r} can't be restored here; nothing was touched. {' '.join(problems)}"
        )
    if not selections:
        raise SnapshotPreflightError(f"Snapshot {snapshot.name!r} holds nothing of what was asked for.")
    _refuse_shared_targets(selections)
    return snapshot, tuple(selections)


def chosen(settings: Settings, request: Request) -> tuple[Snapshot, tuple[ArtifactRecord, ...]]:
    """The snapshot, and what of it is asked for, whether or not it can be restored here; looks at no target.

    Raises ``SnapshotNotFoundError``, ``SnapshotIntegrityError`` or ``SnapshotVersionError``.
    """
    catalog = Catalog(settings.storage)
    snapshot = catalog.latest() if request.name is None else catalog.get(request.name)
    return snapshot, tuple(record for record in snapshot.artifacts if _is_asked_for(record, request))


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
    records = [item.record for item in selections]
    check_artifacts(Catalog(settings.storage), snapshot, records, level=2, observe=attempt.observe)
    notes: list[str] = []
    attempt.before_switch(selections)
    observer = _Observer(attempt.observe)
    attempt = replace(attempt, observe=observer)
    with contextlib.ExitStack() as stack:
        prepared = [_prepare(settings, attempt, snapshot, item, notes, stack) for item in selections]
        for item in prepared:
            item.check()
        attempt.point_of_no_return()
        observer.heeded = False
        _switch_all(selections, prepared)
        attempt.after_switch(selections)
    return RestoreReport(name=snapshot.name, restored=selections, notes=tuple(notes))


class _Observer:
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


def _prepare(
    settings: Settings,
    attempt: RestoreAttempt,
    snapshot: Snapshot,
    item: Selection,
    notes: list[str],
    stack: contextlib.ExitStack,
) -> Prepared:
    record = item.record
    request = RestoreRequest(
        processes=attempt.processes,
        label=attempt.label,
        preserve_tables=attempt.preserve_tables.get(record.subject, frozenset())
        if record.type == "database"
        else frozenset(),
        temporary_directory=lambda: private_directory(settings.temporary_directory),
        report=lambda sentence: notes.append(f"{record.subject}: {sentence}"),
    )
    source = Source(
        filename=record.filename,
        metadata=record.metadata,
        open=lambda: read_content(Catalog(settings.storage), snapshot, record, attempt.observe),
    )
    prepared = settings.kind(record.type).prepare(record.subject, source, request)
    stack.callback(_discard, prepared, request)
    return prepared


def _discard(prepared: Prepared, request: RestoreRequest) -> None:
    """Clean up; what can't be removed is told in the report, and hides neither the restore's success nor its error."""
    try:
        prepared.discard()
    except Exception as error:  # noqa: BLE001
        request.report(f"What the restore had built beside it could not all be removed: {error}")


def _in_order(
    selections: Sequence[Selection], prepared: Sequence[Prepared]
) -> tuple[tuple[Selection, ...], tuple[Prepared, ...]]:
    """What can be brought back first, then what may stop half-way, then what happens as a whole and can't be undone:
    a load that fails half-way still finds everything else as it was, or able to return to it."""
    pairs = sorted(
        zip(selections, prepared, strict=True),
        key=lambda pair: getattr(pair[1], "switch_rank", SwitchRank.IN_PLACE),
    )
    return tuple(selection for selection, _ in pairs), tuple(item for _, item in pairs)


def _switch_all(selections: Sequence[Selection], prepared: Sequence[Prepared]) -> None:
    selections, prepared = _in_order(selections, prepared)
    for position, item in enumerate(prepared):
        try:
            item.switch()
        except BaseException as error:
            kept = _roll_back(selections[:position], prepared[:position])
            if not isinstance(error, Exception):
                raise
            kind, text = _told(error, selections[position])
            raise kind(f"{text} {kept}".strip()) from error


def _told(error: Exception, selection: Selection) -> tuple[type[SnapshotError], str]:
    """An error of a switch; one that isn't ours says nothing of the target's state, and then nobody knows it."""
    if isinstance(error, SnapshotError):
        return type(error), str(error)
    what = f"{selection.target.description} could not be switched ({type(error).__name__}: {error})"
    return SnapshotError, f"{what}, and what it holds now is not known; restore it again."


def _roll_back(selections: Sequence[Selection], prepared: Sequence[Prepared]) -> str:
    """Bring back what was switched already; say what came of it."""
    sentences: list[str] = []
    for selection, item in reversed(list(zip(selections, prepared, strict=True))):
        what = selection.target.description
        try:
            item.roll_back()
        except Exception as error:  # noqa: BLE001 - the others are brought back whatever this one does
            sentences.append(f"{what} already holds the snapshot and could not be brought back: {error}")
        else:
            sentences.append(f"{what} is as it was before.")
    return " ".join(sentences)


def _forbidden(settings: Settings, snapshot: Snapshot, request: Request) -> list[str]:
    problems: list[str] = []
    if not settings.allow_restore:
        problems.append('SNAPSHOTS["ALLOW_RESTORE"] is False in this project.')
    if settings.allow_restore == "requested" and not request.granted:
        problems.append(
            'SNAPSHOTS["ALLOW_RESTORE"] is "requested" in this project: a restore is made by whoever has the right to, '
            "in the admin, by the command or by django_snapshots.request_restore(), and not by a task that anybody "
            "may send."
        )
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
        *_contradiction(request),
    ]


def _contradiction(request: Request) -> list[str]:
    if request.databases and request.artifacts is not None and "database" not in request.artifacts:
        return ["Databases are named, but the artifacts that are named leave them out."]
    return []


def _is_asked_for(record: ArtifactRecord, request: Request) -> bool:
    if request.artifacts is not None and record.type not in request.artifacts:
        return False
    if request.databases is None:
        return True
    if record.type == "database":
        return record.subject in request.databases
    # Naming databases alone means just these.
    return request.artifacts is not None


def target_of(settings: Settings, record: ArtifactRecord) -> Target:
    kind = settings.kind(record.type)
    if record.subject not in kind.subjects():
        raise SnapshotPreflightError(
            f"This project has no {record.type} {record.subject!r}; name what to restore, or add it to the settings."
        )
    return kind.target(record.subject)


def _refuse_shared_targets(selections: Sequence[Selection]) -> None:
    seen: dict[str, Selection] = {}
    for item in selections:
        identity = item.target.identity
        if identity and identity in seen:
            raise SnapshotPreflightError(
                f"{seen[identity].record.subject!r} and {item.record.subject!r} are the same thing, "
                f"{item.target.description}; restore one of them."
            )
        seen[identity] = item
