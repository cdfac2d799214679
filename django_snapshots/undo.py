"""The way back from a restore: what it kept, and the safety copies that it took, in the place of what it brought.

Who can die when, and what then holds: an undo is a restore whose new states are the kept ones. It keeps what it
replaces in the same way, so it can itself be undone. Knows neither Celery nor the journal: what a restore has left
says itself which restore that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django_snapshots import partial_restore
from django_snapshots.artifacts.capabilities import beside_of, bring_back_of, keeps_of, restores_tables_of
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.connectors.derived import known
from django_snapshots.connectors.single_tables import only_the_whole
from django_snapshots.exceptions import (
    SnapshotConfirmationError,
    SnapshotError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.manifest import Snapshot, to_iso
from django_snapshots.replaced import Beside
from django_snapshots.restore import (
    Observer,
    RestoreAttempt,
    forbidden,
    mark_of,
    replace_all,
    request_of,
    source_of,
    target_of,
)
from django_snapshots.switching import Change
from django_snapshots.transfer import Target
from django_snapshots.verify import check_artifacts

TAKEN_BACK = "taken_back"
"""Said of a state that a restore has brought, and that was taken back because that restore has failed."""
_RUN = 32


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One state that a restore has replaced, beside its target or as a safety copy in the storage."""

    run: str
    """The restore's, 32 hex digits."""
    type: str
    subject: str
    replaced_at: datetime | None
    expires_at: datetime | None
    place: str
    mark: str = ""
    """Of what lies beside the target; empty for a safety copy."""
    snapshot: str = ""
    """The safety copy's name."""
    tables: tuple[str, ...] = ()
    """The only tables that the restore has replaced, and that come back; empty for the whole."""
    brought: str = ""
    """The snapshot that was put in its place, if that is known."""
    restored: str = ""
    """The subject that the restore was of, by what lies with the state."""
    taken_back: bool = False
    """Whether it is what a restore has brought before it failed: nothing that anybody has lost."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "run": self.run,
            "type": self.type,
            "subject": self.subject,
            "replaced_at": self.replaced_at and to_iso(self.replaced_at),
            "expires_at": self.expires_at and to_iso(self.expires_at),
            "place": self.place,
            "snapshot": self.snapshot or None,
            "replaced_by": self.brought or None,
            **({"tables": list(self.tables)} if self.tables else {}),
        }


@dataclass(frozen=True, kw_only=True)
class UndoReport:
    """What an undo did."""

    undone: str
    run: str
    targets: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        return {"undone": self.undone, "undo": self.run, "targets": list(self.targets), "notes": list(self.notes)}


def kept_states(settings: Settings) -> list[Kept]:
    """Every state that restores have kept and that is still there, the newest first.

    One that lies beside a database of several aliases is told once, of the alias that was restored.
    """
    found = [*_once(_beside(settings)), *_safety_copies(settings)]
    return sorted(found, key=lambda item: item.replaced_at.timestamp() if item.replaced_at else 0.0, reverse=True)


def chosen(settings: Settings, run: str | None) -> tuple[str, list[Kept]]:
    """The restore to undo, the latest if *run* is ``None``, and what it has left.

    *run* may be the beginning of its id. One that has failed and was taken back is meant only if it is named.
    Raises ``SnapshotNotFoundError``.
    """
    states = [item for item in kept_states(settings) if run is not None or not item.taken_back]
    wanted = None if run is None else run.strip().lower().replace("-", "")
    runs = list(dict.fromkeys(item.run for item in states if wanted is None or item.run.startswith(wanted)))
    if not runs:
        what = "Nothing is kept of any restore" if wanted is None else f"Nothing is kept of a restore {run!r}"
        raise SnapshotNotFoundError(
            f'{what}: there was none, or what it replaced is gone, which SNAPSHOTS["SAFETY_KEEP"] sets. '
            "`manage.py snapshots undo --list` shows what there is."
        )
    if wanted is not None and len(runs) > 1:
        raise SnapshotNotFoundError(f"{run!r} begins the ids of {len(runs)} restores: {', '.join(runs)}.")
    return runs[0], [item for item in states if item.run == runs[0]]


def targets(settings: Settings, states: Sequence[Kept]) -> list[Target]:
    """What an undo would replace."""
    return [partial_restore.part_of(target_of(settings, item.type, item.subject), item.tables) for item in states]


def require_confirmation(run: str, found: Sequence[Target], confirmed: Sequence[str]) -> None:
    """Raise ``SnapshotConfirmationError`` unless every target that isn't empty is named in *confirmed*."""
    missing = [target for target in found if not target.empty and target.name not in confirmed]
    if missing:
        listed = ", ".join(target.description for target in missing)
        names = ", ".join(repr(target.name) for target in missing)
        raise SnapshotConfirmationError(
            f"Undoing the restore {run} would replace {listed} by what was there before it. Nothing was touched. "
            f"If that is what you want, confirm by name: confirm=[{names}]."
        )


def undo(settings: Settings, attempt: RestoreAttempt) -> UndoReport:
    """Undo the restore that ``attempt.request.undo`` names. Raises ``SnapshotError``."""
    if problems := forbidden(settings, attempt.request):
        raise SnapshotError(" ".join(problems))
    run, states = chosen(settings, attempt.request.undo)
    found = targets(settings, states)
    require_confirmation(run, found, attempt.request.confirm)
    notes: list[str] = []
    observer = Observer(attempt.observe)
    changes = [
        _change(settings, attempt, item, target, position, notes, observer)
        for position, (item, target) in enumerate(zip(states, found, strict=True))
    ]
    replace_all(settings, attempt, changes, observer)
    return UndoReport(
        undone=run,
        run=attempt.run,
        targets=tuple(change.target.description for change in changes),
        notes=tuple(notes),
    )


def _change(
    settings: Settings,
    attempt: RestoreAttempt,
    item: Kept,
    target: Target,
    position: int,
    notes: list[str],
    observer: Observer,
) -> Change:
    kind, mark = settings.kind(item.type), mark_of(attempt, position)
    if item.tables and not restores_tables_of(kind, item.subject):
        raise SnapshotPreflightError(f"{only_the_whole(item.subject, item.tables)} The copy is {item.place}.")
    request = request_of(settings, attempt, item.type, item.subject, target, mark, item.snapshot, notes)
    request = partial_restore.only(request, item.tables)
    change = Change(
        type=item.type,
        subject=item.subject,
        target=target,
        mark=mark,
        keeps=keeps_of(kind, item.subject, item.tables),
        request=request,
        prepare=lambda wanted: bring_back_of(kind, item.subject, item.mark, wanted),
    )
    if not item.snapshot:
        return change
    snapshot = Catalog(settings.storage).get(item.snapshot)
    check_artifacts(Catalog(settings.storage), snapshot, snapshot.artifacts, level=2, observe=observer)
    source = source_of(settings, snapshot, snapshot.artifacts[0], observer)
    return replace(change, prepare=lambda wanted: kind.prepare(item.subject, source, wanted))


def _beside(settings: Settings) -> Iterator[Kept]:
    for artifact in settings.artifacts:
        kind = settings.kind(artifact)
        for subject in (*kind.subjects(), *(known() if artifact == "database" else ())):
            for item in beside_of(kind, subject):
                if item.kept and len(item.mark) > _RUN:
                    yield _of(item, artifact, subject)


def _once(found: Iterable[Kept]) -> Iterable[Kept]:
    """Those of each mark once: an undo that found one twice would bring it back, and then find it gone."""
    told: dict[tuple[str, str], Kept] = {}
    for item in found:
        if (item.type, item.mark) not in told or item.subject == item.restored:
            told[item.type, item.mark] = item
    return told.values()


def _of(item: Beside, artifact: str, subject: str) -> Kept:
    return Kept(
        run=item.mark[:_RUN],
        type=artifact,
        subject=subject,
        replaced_at=item.kept_at or _moment(item.about.get("replaced_at")),
        expires_at=_moment(item.about.get("expires_at")),
        place=item.place,
        mark=item.mark,
        brought=str(item.about.get("snapshot") or ""),
        restored=str(item.about.get("subject") or ""),
        taken_back=item.about.get(TAKEN_BACK) is True,
        tables=partial_restore.told_by(item.about),
    )


def _safety_copies(settings: Settings) -> Iterator[Kept]:
    for entry in Catalog(settings.storage).entries():
        snapshot = entry.snapshot
        if snapshot is not None and snapshot.safety is not None and _is_ours(settings, snapshot):
            (record,) = snapshot.artifacts
            yield Kept(
                run=snapshot.safety.restore,
                type=record.type,
                subject=record.subject,
                replaced_at=snapshot.created_at,
                expires_at=snapshot.safety.expires_at,
                place=f"safety copy {snapshot.name}",
                snapshot=snapshot.name,
                tables=snapshot.safety.tables,
            )


def _is_ours(settings: Settings, snapshot: Snapshot) -> bool:
    return (snapshot.project, snapshot.environment) == (settings.project, settings.environment) and len(
        snapshot.artifacts
    ) == 1


def _moment(text: object) -> datetime | None:
    """A time out of hostile JSON, aware; ``None`` for anything else."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
