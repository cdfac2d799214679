"""The journal's moves: begin, claim, show life, end a step, finish, cancel, sweep. Every one is a conditional update.

Who can die when, and what then holds: a row changes hands only by an update that names the state and the token it
expects, so of two workers that try the same move one sees no row changed and leaves. Tokens only grow; an attempt's
object carries its token in its name, so that a late writer can't touch its successor's. Whoever works on something
has a lease by the database's clock; when it is over, anybody may take the work away (``dead``). The states, and who
may move them, are a table in ``docs/explanation/runs.md``.
"""

from django_snapshots.runs.begin import Requester, begin, planned, start, steps_of, touch, wait
from django_snapshots.runs.cancel import can_be_cancelled, find, get, request_cancel
from django_snapshots.runs.clock import DatabaseNow, Lease, seconds_since_boot
from django_snapshots.runs.dead import BEGUN_ANEW, dead_steps, end_dead_steps, give_up
from django_snapshots.runs.errors import describe, rebuild
from django_snapshots.runs.finish import (
    Finish,
    cancelled,
    claim_finish,
    close_the_way_back,
    end_with,
    first_failure,
    is_being_finished,
    refuse,
    release_finish,
    renew_finish,
    retreat,
    succeed,
    told,
)
from django_snapshots.runs.history import ended_before, known_bad, known_storage_id, lately, live, reserved_by
from django_snapshots.runs.locks import InTheWay, Wanted, add, drop, require_free, snapshot_lock
from django_snapshots.runs.place import (
    alias,
    available,
    holder,
    require_no_transaction,
    seen_by_this_thread_alone,
    tables,
)
from django_snapshots.runs.steps import (
    Claim,
    Verdict,
    claim,
    close_the_way_back_of_step,
    complete,
    fail,
    hinted,
    note,
    ready,
    release,
    renew,
    run_of,
)
from django_snapshots.runs.sweep import (
    Swept,
    end_dead,
    is_collection_due,
    is_due,
    is_late,
    since_sweep,
    sweep,
    sweep_run,
    waiting,
)

__all__ = [
    "BEGUN_ANEW",
    "Claim",
    "DatabaseNow",
    "Finish",
    "InTheWay",
    "Lease",
    "Requester",
    "Swept",
    "Verdict",
    "Wanted",
    "add",
    "alias",
    "available",
    "begin",
    "can_be_cancelled",
    "cancelled",
    "claim",
    "claim_finish",
    "close_the_way_back",
    "close_the_way_back_of_step",
    "complete",
    "dead_steps",
    "describe",
    "drop",
    "end_dead",
    "end_dead_steps",
    "end_with",
    "ended_before",
    "fail",
    "find",
    "first_failure",
    "get",
    "give_up",
    "hinted",
    "holder",
    "is_being_finished",
    "is_collection_due",
    "is_due",
    "is_late",
    "known_bad",
    "known_storage_id",
    "lately",
    "live",
    "note",
    "planned",
    "ready",
    "rebuild",
    "refuse",
    "release",
    "release_finish",
    "renew",
    "renew_finish",
    "request_cancel",
    "require_free",
    "require_no_transaction",
    "reserved_by",
    "retreat",
    "run_of",
    "seconds_since_boot",
    "seen_by_this_thread_alone",
    "since_sweep",
    "snapshot_lock",
    "start",
    "steps_of",
    "succeed",
    "sweep",
    "sweep_run",
    "tables",
    "told",
    "touch",
    "wait",
    "waiting",
]
