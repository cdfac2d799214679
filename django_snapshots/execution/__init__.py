"""One engine behind tasks, admin, command and code: begins runs, works on steps, finishes runs.

The same three moves serve workers, each for its own step, and one process that does it all inline. Where the journal
can't be written (a bare machine, no database) an inline run goes on without it.
"""

from django_snapshots.execution.begin import launch, prepare, settle_dead
from django_snapshots.execution.errors import explained
from django_snapshots.execution.finish import finish, outcome
from django_snapshots.execution.garbage import collect
from django_snapshots.execution.hooks import Hooks
from django_snapshots.execution.inline import (
    cancel_run,
    create_snapshot,
    drill_snapshot,
    give_up_run,
    list_snapshots,
    progress,
    restore_snapshot,
    run_inline,
    run_request,
    undo_restore,
    verify_snapshot,
)
from django_snapshots.execution.leftovers import settle_without_journal
from django_snapshots.execution.operations import delete_snapshot, plan_prune
from django_snapshots.execution.pins import pin_snapshot, unpin_snapshot
from django_snapshots.execution.place import has_journal, list_entries, told_without_locks
from django_snapshots.execution.restoring import meet_derived_aliases, preflight, undo_states
from django_snapshots.execution.work import work

__all__ = [
    "Hooks",
    "cancel_run",
    "collect",
    "create_snapshot",
    "delete_snapshot",
    "drill_snapshot",
    "explained",
    "finish",
    "give_up_run",
    "has_journal",
    "launch",
    "list_entries",
    "list_snapshots",
    "meet_derived_aliases",
    "outcome",
    "pin_snapshot",
    "plan_prune",
    "preflight",
    "prepare",
    "progress",
    "restore_snapshot",
    "run_inline",
    "run_request",
    "settle_dead",
    "settle_without_journal",
    "told_without_locks",
    "undo_restore",
    "undo_states",
    "unpin_snapshot",
    "verify_snapshot",
    "work",
]
