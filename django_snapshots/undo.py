"""The way back from a restore: what it kept, and the safety copies that it took, in the place of what it brought.

Who can die when, and what then holds: an undo is a restore whose new states are the kept ones. It keeps what it
replaces in the same way, so it can itself be undone. Knows neither Celery nor the journal: what a restore has left
says itself which restore that was.

Whoever can't be asked, a server, a disk or the storage that is away, may have more of the same restore. So an undo
takes what is found only if that is known to be all that it is to put back: all of the restore, or the part that is
named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from django_snapshots import partial_restore
from django_snapshots.artifacts.capabilities import beside_of, bring_back_of, is_provable, keeps_of, restores_tables_of
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
from django_snapshots.plan import Request
from django_snapshots.redaction import redact
from django_snapshots.replaced import KEPT_OF, TAKEN_BACK, Beside
from django_snapshots.restore import (
    Observer,
    RestoreAttempt,
    contradiction,
    forbidden,
    is_asked_for,
    mark_of,
    replace_all,
    request_of,
    source_of,
    target_of,
)
from django_snapshots.switching import Change
from django_snapshots.transfer import Target
from django_snapshots.verify import check_artifacts

logger = logging.getLogger("django_snapshots")

_RUN = 32
_ID = re.compile(r"[0-9a-f]{32}")


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
    about: Mapping[str, Any] = field(default_factory=dict)
    """What its restore has written with it."""

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


@dataclass(frozen=True, kw_only=True)
class Unasked:
    """Somebody who may have kept something, and who can't be asked now."""

    type: str
    """The artifact kind; empty for the storage, which may have a safety copy of anything."""
    subject: str
    why: str

    def __str__(self) -> str:
        what = f"{self.type} {self.subject}" if self.type else "the safety copies in the storage"
        return f"{what} ({self.why})"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What restores have kept, as far as that is seen."""

    states: tuple[Kept, ...]
    """The newest first."""
    unasked: tuple[Unasked, ...]

    def missed(self, request: Request) -> list[Unasked]:
        """Who may have something of what *request* asks for, and can't be asked."""
        return [item for item in self.unasked if not item.type or is_asked_for(item.type, item.subject, request)]


def look(settings: Settings) -> Found:
    """Ask everybody. One state that lies beside a database of several aliases is told once, of the alias that was
    restored."""
    unasked: list[Unasked] = []
    found = [*_once(_beside(settings, unasked)), *_safety_copies(settings, unasked)]
    newest = sorted(found, key=lambda item: item.replaced_at.timestamp() if item.replaced_at else 0.0, reverse=True)
    return Found(states=tuple(newest), unasked=tuple(unasked))


def kept_states(settings: Settings) -> list[Kept]:
    """Every state that restores have kept and that is still there, the newest first; who can't be asked is logged."""
    found = look(settings)
    for item in found.unasked:
        logger.warning("What restores have kept is not known of %s.", item)
    return list(found.states)


def chosen(
    settings: Settings, request: Request, ignored: Callable[[set[str]], set[str]] = lambda _: set()
) -> tuple[str, list[Kept], list[Unasked]]:
    """The restore to undo, the latest if *request* names none, what is found of the part of it that is asked for, and
    who may have more of that and can't be asked.

    It may be named by the beginning of its id. Meant only if it is named is one that has failed and was taken back, and
    one that *ignored* tells among others: it may have left a safety copy, and has changed nothing.
    Raises ``SnapshotNotFoundError``, and ``SnapshotPreflightError`` if it can't be told which is the latest.
    """
    if problems := contradiction(request):
        raise SnapshotPreflightError(" ".join(problems))
    found, named = look(settings), request.undo
    missed = found.missed(request)
    if named is None and missed:
        raise SnapshotPreflightError(
            f"Which restore was the latest can't be told now, because {_listed(missed)} can't be asked. Nothing was "
            "touched. Name the restore that is to be undone; `manage.py snapshots undo --list` shows those that are "
            "seen."
        )
    states = [item for item in found.states if is_asked_for(item.type, item.subject, request)]
    if named is None:
        unmeant = ignored({item.run for item in states})
        states = [item for item in states if not (item.taken_back or item.run in unmeant)]
    runs = list(dict.fromkeys(item.run for item in states if named is None or item.run.startswith(named)))
    if not runs:
        raise SnapshotNotFoundError(_nothing(request, missed))
    if named is not None and len(runs) > 1:
        raise SnapshotNotFoundError(f"{named!r} begins the ids of {len(runs)} restores: {', '.join(runs)}.")
    mine = [item for item in states if item.run == runs[0]]
    # What a restore that failed had brought is not what it has replaced; where it has left that, too, that is meant.
    return runs[0], [item for item in mine if not item.taken_back] or mine, missed


def require_all(
    run: str, states: Sequence[Kept], request: Request, replaced: Sequence[str] | None, missed: Sequence[Unasked]
) -> None:
    """Raise ``SnapshotNotFoundError`` unless *states* are known to be all that *request* asks for: the parts that it
    names, or as many as the run has *replaced*, in words; ``None`` if nobody knows."""
    if request.databases is not None or request.artifacts is not None:
        if absent := _absent(states, request):
            why = f" Not asked, because that is not possible now: {_listed(missed)}." if missed else ""
            raise SnapshotNotFoundError(f"Of the restore {run} nothing is found of {', '.join(absent)}.{why}")
        return
    if len(states) < len(replaced or ()) or (replaced is None and missed):
        raise SnapshotNotFoundError(_half(run, states, replaced or (), missed))


def _absent(states: Sequence[Kept], request: Request) -> list[str]:
    types, aliases = {item.type for item in states}, {item.subject for item in states if item.type == "database"}
    return [
        *(f"the database {alias!r}" for alias in request.databases or () if alias not in aliases),
        *(f"the artifact {kind!r}" for kind in request.artifacts or () if kind not in types),
    ]


def _nothing(request: Request, missed: Sequence[Unasked]) -> str:
    what = (
        "Nothing is kept of any restore" if request.undo is None else f"Nothing is kept of a restore {request.undo!r}"
    )
    if request.databases is not None or request.artifacts is not None:
        named = [*(f"database {name!r}" for name in request.databases or ()), *map(repr, request.artifacts or ())]
        what += f", as far as {', '.join(named)} goes"
    if missed:
        return f"{what}, as far as is seen now: {_listed(missed)} can't be asked."
    return (
        f'{what}: there was none, or what it replaced is gone, which SNAPSHOTS["SAFETY_KEEP"] sets. '
        "`manage.py snapshots undo --list` shows what there is."
    )


def _half(run: str, states: Sequence[Kept], replaced: Sequence[str], missed: Sequence[Unasked]) -> str:
    """Half of a restore is not taken back without a word: what to say."""
    found = ", ".join(f"{state.type} {state.subject}" for state in states)
    more = f"It has replaced {', '.join(replaced)}. " if replaced else ""
    unasked = (
        f"{_listed(missed)} can't be asked. " if missed else "Is a server or a disk away, or a part undone already? "
    )
    return (
        f"The restore {run} may have replaced more than is found now. {more}Found is what was before of: {found}. "
        f"{unasked}Nothing was touched. To put back on purpose what is found, and no more, name it: `manage.py "
        f"snapshots undo {run} {_named(states)}`."
    )


def _named(states: Sequence[Kept]) -> str:
    """The options that name just these parts."""
    databases = [f"--database {item.subject}" for item in states if item.type == "database"]
    others = [f"--artifact {item.type}" for item in states if item.type != "database"]
    return " ".join(dict.fromkeys([*databases, *(["--artifact database"] if databases and others else []), *others]))


def _listed(unasked: Sequence[Unasked]) -> str:
    return ", ".join(map(str, unasked))


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


def undo(settings: Settings, attempt: RestoreAttempt, run: str, states: Sequence[Kept]) -> UndoReport:
    """Put *states*, which the restore *run* has left, back in their places. Raises ``SnapshotError``."""
    if problems := forbidden(settings, attempt.request):
        raise SnapshotError(" ".join(problems))
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
    # What lies beside its target comes back by a way that keeps, whatever a restore would take now.
    keeps = bool(item.mark) or keeps_of(kind, item.subject, item.tables)
    request = replace(request, keeps=keeps)
    change = Change(
        type=item.type,
        subject=item.subject,
        target=target,
        mark=mark,
        keeps=keeps,
        provable=is_provable(kind, item.subject),
        request=request,
        prepare=lambda wanted: bring_back_of(kind, item.subject, item.mark, wanted),
        bring_back=partial(bring_back_of, kind, item.subject, mark) if keeps else None,
        look=lambda: kind.target(item.subject),
        about_back=_about_back(item),
    )
    if not item.snapshot:
        return change
    snapshot = Catalog(settings.storage).get(item.snapshot)
    check_artifacts(Catalog(settings.storage), snapshot, snapshot.artifacts, level=2, observe=observer)
    source = source_of(settings, snapshot, snapshot.artifacts[0], observer)
    return replace(change, prepare=lambda wanted: kind.prepare(item.subject, source, wanted))


def _about_back(item: Kept) -> Mapping[str, object]:
    """What is said of a kept state that was put back, if the undo fails and takes it away again: it is still what its
    restore has replaced, and goes when it was to go. A safety copy stays where it is all the time."""
    return {**item.about, KEPT_OF: item.run} if item.mark else {TAKEN_BACK: True, "snapshot": ""}


def _beside(settings: Settings, unasked: list[Unasked]) -> Iterator[Kept]:
    """What lies beside the targets; *unasked* hears of those that can't be asked, or not understood."""
    for artifact in settings.artifacts:
        kind = settings.kind(artifact)
        for subject in (*kind.subjects(), *(known() if artifact == "database" else ())):
            try:
                found = beside_of(kind, subject)
            except Exception as error:  # noqa: BLE001 - a connector raises what it likes, and others are still to come
                unasked.append(Unasked(type=artifact, subject=subject, why=redact(str(error)).strip()))
                continue
            if why := " ".join(item.unseen for item in found if item.unseen):
                unasked.append(Unasked(type=artifact, subject=subject, why=redact(why)))
            for item in found:
                if item.kept and not item.unseen and _ID.fullmatch(item.mark[:_RUN]):
                    yield _of(item, artifact, subject)


def _once(found: Iterable[Kept]) -> Iterable[Kept]:
    """Those of each mark once: an undo that found one twice would bring it back, and then find it gone."""
    told: dict[tuple[str, str], Kept] = {}
    for item in found:
        if (item.type, item.mark) not in told or item.subject == item.restored:
            told[item.type, item.mark] = item
    return told.values()


def _of(item: Beside, artifact: str, subject: str) -> Kept:
    kept_of = item.about.get(KEPT_OF)
    return Kept(
        run=kept_of if isinstance(kept_of, str) and _ID.fullmatch(kept_of) else item.mark[:_RUN],
        type=artifact,
        subject=subject,
        replaced_at=item.kept_at or _moment(item.about.get("replaced_at")),
        expires_at=_moment(item.about.get("expires_at")),
        place=item.place,
        mark=item.mark,
        brought=str(item.about.get("snapshot") or ""),
        restored=str(item.about.get("subject") or ""),
        taken_back=item.about.get(TAKEN_BACK) is True,
        about=item.about,
        tables=partial_restore.told_by(item.about),
    )


def _safety_copies(settings: Settings, unasked: list[Unasked]) -> Iterator[Kept]:
    try:
        entries = Catalog(settings.storage).entries()
    except Exception as error:  # noqa: BLE001 - a storage raises what it likes; what lies on servers doesn't need it
        unasked.append(Unasked(type="", subject="", why=redact(str(error)).strip()))
        return
    for entry in entries:
        snapshot = entry.snapshot
        if snapshot is None or snapshot.safety is None or not _ID.fullmatch(snapshot.safety.restore):
            continue
        if _is_ours(settings, snapshot):
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
