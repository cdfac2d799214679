"""Questions before something is replaced or deleted; an answer that isn't the name of it means no."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django_snapshots import restore as restoring
from django_snapshots.catalog import label
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import SnapshotConfirmationError
from django_snapshots.manifest import Snapshot, to_iso
from django_snapshots.transfer import Target

Say = Callable[[str], object]


def confirm_targets(
    say: Say, snapshot: Snapshot, selections: Sequence[restoring.Selection], confirmed: Sequence[str]
) -> list[str]:
    """Name every target that a restore would replace and have its name typed; return what was typed."""
    answers: list[str] = []
    for item in selections:
        if item.target.empty or item.target.name in confirmed:
            continue
        say(
            f"Snapshot {snapshot.name} ({to_iso(snapshot.created_at)}) will replace "
            f"{item.target.description}. What is in it now is kept for a while: see `manage.py snapshots undo`."
        )
        answers.append(_typed(f"Type {item.target.name} to go on: "))
    return answers


def confirm_undo(say: Say, run: str, targets: Sequence[Target], confirmed: Sequence[str]) -> list[str]:
    """Name every target that an undo would replace and have its name typed; return what was typed."""
    answers: list[str] = []
    for target in targets:
        if target.empty or target.name in (*confirmed, *answers):
            continue
        say(f"Undoing the restore {run} will replace {target.description} by what was there before it.")
        answers.append(_typed(f"Type {target.name} to go on: "))
    return answers


def confirm_delete(name: str) -> None:
    """Have the name of a snapshot typed that is to be deleted; raise ``SnapshotConfirmationError`` for another word."""
    storage = label(get_settings().storage)
    if _typed(f"Delete snapshot {name} in {storage} for good? Type its name to go on: ") != name:
        raise SnapshotConfirmationError(f"{name!r} was not confirmed; nothing was deleted.")


def confirm_prune(say: Say, names: Sequence[str]) -> None:
    """Show what a prune would delete; raise ``SnapshotConfirmationError`` for any answer but yes."""
    if not names:
        return
    for name in names:
        say(f"  {name}")
    storage = label(get_settings().storage)
    if _typed(f"Delete these {len(names)} snapshots in {storage} for good? Type yes to go on: ") != "yes":
        raise SnapshotConfirmationError("Not confirmed; nothing was deleted.")


def _typed(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise SnapshotConfirmationError(
            "There is nobody to ask; nothing was touched. Confirm on the command line."
        ) from None
