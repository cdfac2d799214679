"""What a caller hears of a run that is at work."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from django_snapshots.exceptions import SnapshotError
from django_snapshots.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller wants to hear while work goes on."""

    moment_fixed: Callable[[uuid.UUID, int], None] = lambda _run, _phase: None
    """A step of this run and phase has fixed its moment, or ended without; the next phase may have become ready."""
    moved: Callable[[str, int], None] = lambda _what, _count: None
    """So many bytes of this subject went by."""
    waits: Callable[[str], None] = lambda _why: None
    """The run has not begun: another one has what it needs."""
    attempt: Callable[[], AbstractContextManager[Processes]] = Processes
    """Makes what holds the programs of one attempt; whoever keeps it can end them."""
    beat: Callable[[uuid.UUID], None] = lambda _run: None
    """The attempt has just shown life, in a thread of its own; a moment to look after other things."""
    stuck: Callable[[SnapshotError], None] = lambda _error: None
    """The thread that works hangs, and nothing in this process can wake it; the journal has been told."""
