"""Several targets replaced together: prepare all, check all, switch all, back on failure.

Who can die when, and what then holds: until the first ``switch`` nothing of any target has changed, whatever dies. If
one target's ``switch`` raises, those before it are brought back, each on its own; the error says in which state each
target is. But where it can't be told what became of that one, nothing is brought back: it may hold its new state, and
then all of them do. That is for whoever settles the restore, as it is if the process dies between two switches: each
target is settled by its mark (``replaced``). An attempt that has lost its right to another one brings nothing back,
either: it asks for that (``Moves.going_back``) before it begins, and again before each switch back, when whatever it
has built for that can be found by its mark.

What is brought back so was the target's state for a moment, and clients may have written to it. So where a target keeps
what is replaced, bringing back is a switch of its own: the first one is brought to its end, then the kept state goes
the way of an undo, under a mark of its own (``back_mark``), and what was there meanwhile is kept under that. Dies the
process in between, whoever settles the target settles both marks. Where nothing is kept, ``Prepared.roll_back`` is all
there is. A ``switch`` that ends with a COMMIT of its engine can't be brought back, and is one of the last: only another
such COMMIT can fail after it.

Knows neither Celery nor the journal, and not where the new states come from: a snapshot, or what was kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotError, SnapshotNotFoundError, SnapshotPreflightError
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.replaced import Finding, SnapshotUnsettled, back_mark
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import Prepared, RestoreRequest, Source, SwitchRank, Target


@dataclass(frozen=True, kw_only=True)
class Change:
    """One target that is to be replaced."""

    type: str
    subject: str
    target: Target
    mark: str
    keeps: bool
    """Whether what is replaced stays beside the target; else it needs a safety copy."""
    provable: bool = False
    """Whether its kind can tell later, by its mark, what became of it."""
    request: RestoreRequest
    prepare: Callable[[RestoreRequest], Prepared]
    preflight: Callable[[Source], Iterable[Finding]] = lambda _: ()
    """What its kind finds in the way of it."""
    bring_back: Callable[[RestoreRequest], Prepared] | None = None
    """Prepares to put in its place again what the switch has replaced and kept; ``None`` where nothing is kept."""
    look: Callable[[], Target] | None = None
    """Looks at the target once more: what was empty when the restore began may hold something by now."""
    about_back: Mapping[str, object] = field(default_factory=dict)
    """What is written, besides the request's own, with the state that is kept when the target is brought back."""

    @property
    def needs_safety(self) -> bool:
        """Whether there is something to lose that isn't kept by itself."""
        return not self.keeps and not self.target.empty


@dataclass(frozen=True, kw_only=True)
class Moves:
    """What happens around the switch. Each may raise until the first switch; then nothing is switched."""

    safety: Callable[[Change], None] = lambda _: None
    """Takes a safety copy of a target; raises if that can't be had."""
    point_of_no_return: Callable[[], None] = lambda: None
    """Passed right before the first switch."""
    switched: Callable[[], None] = lambda: None
    """Called when every target holds its new state."""
    going_back: Callable[[], None] = lambda: None
    """Passed before what was switched is brought back; raises if that is somebody else's to do by now."""


def carry_out(changes: Sequence[Change], moves: Moves) -> None:
    """Prepare, check and switch all of *changes*. Raises ``SnapshotError`` that says what state each target is in."""
    with contextlib.ExitStack() as stack:
        prepared = [_prepare(change, moves, stack) for change in changes]
        for item in prepared:
            item.check()
        moves.point_of_no_return()
        _switch_all(changes, prepared, moves)
        moves.switched()


def request_for(
    settings: Settings,
    *,
    processes: Processes,
    label: str,
    report: Callable[[str], None],
    preserve_tables: frozenset[str] = frozenset(),
    mark: str = "",
    about: Mapping[str, object] | None = None,
    note: Callable[[Mapping[str, object]], None] = lambda _: None,
) -> RestoreRequest:
    """What is asked of one target."""
    return RestoreRequest(
        processes=processes,
        label=label,
        preserve_tables=preserve_tables,
        temporary_directory=lambda: private_directory(settings.temporary_directory),
        report=report,
        mark=mark,
        about=dict(about or {}),
        note=note,
    )


@dataclass(kw_only=True)
class _Safety:
    """Takes the safety copy of one target once. Whoever asks for it keeps nothing of what he replaces, whatever was
    said before."""

    change: Change
    take: Callable[[Change], None]
    taken: bool = field(default=False)

    def __call__(self) -> None:
        if not self.taken and not self._nothing_to_lose():
            self.take(self.change)
        self.taken = True

    def _nothing_to_lose(self) -> bool:
        return self.change.target.empty and (self.change.look is None or self.change.look().empty)


def _prepare(change: Change, moves: Moves, stack: contextlib.ExitStack) -> Prepared:
    safety = _Safety(change=change, take=moves.safety)
    request = replace(change.request, safety=safety)
    prepared = change.prepare(request)
    stack.callback(_discard, prepared, request)
    # Somebody's own connector may know nothing of it; until its switch nothing has changed.
    if not change.keeps:
        safety()
    return prepared


def _discard(prepared: Prepared, request: RestoreRequest) -> None:
    """Clean up; what can't be removed is told in the report, and hides neither the restore's success nor its error."""
    try:
        prepared.discard()
    except Exception as error:  # noqa: BLE001
        request.report(f"What the restore had built beside it could not all be removed: {redact(str(error))}")


def _in_order(
    changes: Sequence[Change], prepared: Sequence[Prepared]
) -> tuple[tuple[Change, ...], tuple[Prepared, ...]]:
    """What can be brought back first, then what may stop half-way, then what happens as a whole and can't be undone:
    a load that fails half-way still finds everything else as it was, or able to return to it."""
    pairs = sorted(
        zip(changes, prepared, strict=True),
        key=lambda pair: getattr(pair[1], "switch_rank", SwitchRank.IN_PLACE),
    )
    return tuple(change for change, _ in pairs), tuple(item for _, item in pairs)


def _switch_all(changes: Sequence[Change], prepared: Sequence[Prepared], moves: Moves) -> None:
    changes, prepared = _in_order(changes, prepared)
    for position, item in enumerate(prepared):
        try:
            item.switch()
        except Exception as error:
            kind, text = _told(error, changes[position])
            if issubclass(kind, SnapshotUnsettled):
                raise kind(f"{text}{_still_hold(changes[:position])}") from error
            kept, settled = _roll_back(changes[:position], prepared[:position], moves)
            raise (kind if settled else SnapshotUnsettled)(f"{text} {kept}".strip()) from error
        except BaseException:
            # Told to end in the middle of it. What came of it can be told later, and decides about the others.
            if not changes[position].provable:
                _roll_back(changes[:position], prepared[:position], moves)
            raise


def _told(error: Exception, change: Change) -> tuple[type[SnapshotError], str]:
    """An error of a switch; one that isn't ours says nothing of the target's state, and then nobody knows it yet."""
    if isinstance(error, SnapshotError):
        return type(error), str(error)
    what = f"{change.target.description} could not be switched ({type(error).__name__}: {redact(str(error)).strip()})"
    if change.provable:
        return SnapshotUnsettled, f"{what}. What it holds now is for whoever settles the restore to find out."
    return SnapshotError, f"{what}, and what it holds now is not known; restore it again."


def _still_hold(changes: Sequence[Change]) -> str:
    """What was switched already, and stays so until the restore is settled."""
    names = ", ".join(change.target.description for change in changes)
    return f" What was restored holds the snapshot until then: {names}." if names else ""


def _roll_back(changes: Sequence[Change], prepared: Sequence[Prepared], moves: Moves) -> tuple[str, bool]:
    """Bring back what was switched already; say what came of it, and whether nothing is left to be settled."""
    if not changes:
        return "", True
    try:
        moves.going_back()
    except Exception as error:  # noqa: BLE001 - whoever has the right to it by now decides
        return f"Nothing was brought back by this attempt ({redact(str(error))}).{_still_hold(changes)}", False
    sentences: list[str] = []
    settled = True
    for change, item in reversed(list(zip(changes, prepared, strict=True))):
        what = change.target.description
        try:
            kept = _bring_back(change, item, moves)
        except Exception as error:  # noqa: BLE001 - the others are brought back whatever this one does
            sentences.append(f"{what} already holds the snapshot and could not be brought back: {redact(str(error))}")
            settled = settled and not _is_tried_again(change, error)
        else:
            sentences.append(f"{what} is as it was before.{kept}")
    return " ".join(sentences), settled


def _bring_back(change: Change, item: Prepared, moves: Moves) -> str:
    """Bring back what was there before; return, in words, where that is what was there meanwhile."""
    if change.bring_back is None:
        item.roll_back()
        return ""
    # The switch comes to its end: what it has replaced is kept now, and can be brought back like any kept state.
    item.discard()
    back = change.bring_back(_back_request(change))
    try:
        back.check()
        # Who takes the restore over before this has taken the right to it; who does so after it finds this mark.
        moves.going_back()
        back.switch()
    finally:
        _discard(back, change.request)
    return " What was put there, with all that was written to it meanwhile, is kept: `manage.py snapshots undo --list`."


def _back_request(change: Change) -> RestoreRequest:
    return replace(
        change.request,
        mark=back_mark(change.mark),
        about={**change.request.about, **change.about_back},
        note=lambda _: None,
        safety=lambda: None,
    )


def _is_tried_again(change: Change, error: Exception) -> bool:
    """Whether whoever settles the restore may still bring it back: what is kept is there, and was only in the way. What
    the target itself refuses, it refuses until somebody has changed it; what is kept stays for an undo."""
    if change.bring_back is None:
        return isinstance(error, SnapshotUnsettled)
    return not isinstance(error, SnapshotNotFoundError | SnapshotPreflightError)
