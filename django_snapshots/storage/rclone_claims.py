"""Exclusive moves on remotes that have none: whoever moves, claims both names before, by an object that others see.

No operation of rclone refuses an existing destination in one step: it looks, and then renames or copies. So every
move of this package first writes a claim, an object whose name is made of the two names, and then lists the claims.
Of two that want the same name, one listed after the other had written, so at least one of them sees the other. Whoever
sees another steps back, but for the one whose claim sorts first: that one waits until it is alone.

What it rests on: a listing shows every object that was written before it began. It holds only between those who use
this backend on the same place.

A claim that its owner has not renewed for ``STALE_SECONDS``, by the remote's own clock, is of a process that died.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex

from django_snapshots.exceptions import SnapshotError, SnapshotStorageError
from django_snapshots.storage.paths import RESERVED

DIRECTORY = f"{RESERVED}claims"
STALE_SECONDS = 900.0
RENEW_SECONDS = 60.0
WAIT_SECONDS = 120.0
_PAUSE_SECONDS = (0.02, 0.15)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A claim as the remote shows it."""

    name: str
    modified: datetime | None


@dataclass(frozen=True, kw_only=True)
class Board:
    """What claims need of a storage."""

    write: Callable[[str], None]
    """Makes, or makes new, the claim of that name."""
    delete: Callable[[str], None]
    listed: Callable[[], Sequence[Listed]]
    label: str


class Claim:
    """A claim that is alone; ``renew`` it while the work goes on."""

    def __init__(self, board: Board, name: str, *, written: float) -> None:
        self._board = board
        self._name = name
        self._written = written

    def ensure_fresh(self) -> None:
        """Raise if so much time went by that others may take the claim for a dead process's."""
        if now() - self._written > STALE_SECONDS / 2:
            raise SnapshotStorageError(
                f"This process stood still while it was about to move an object in "
                f"{self._board.label}; nothing was moved. Try again."
            )

    def renew(self) -> None:
        """Write it again."""
        self._board.write(self._name)
        self._written = now()


@contextmanager
def claimed(board: Board, names: Sequence[str], look: Callable[[], None]) -> Iterator[Claim]:
    """Hold *names* against every other user of *board*. *look* is called after each wait, and raises if there is no
    use in waiting any longer.

    Raises ``SnapshotStorageError`` if somebody holds them for longer than ``WAIT_SECONDS``.
    """
    digests = [_digest(name) for name in names]
    deadline = now() + WAIT_SECONDS
    while True:
        name, written = "-".join([*digests, token_hex(8)]), now()
        try:
            board.write(name)
            if _is_alone(board, name, deadline):
                yield Claim(board, name, written=written)
                return
        finally:
            # Left behind, it holds up only those who want these names, and only for a while.
            with suppress(SnapshotError):
                board.delete(name)
        _wait_until_free(board, name, deadline)
        look()


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _is_alone(board: Board, name: str, deadline: float) -> bool:
    while others := _others(board, name):
        if min(others) < name:
            return False
        _pause(board, others, deadline)
    return True


def _wait_until_free(board: Board, name: str, deadline: float) -> None:
    while others := _others(board, name, mine=False):
        _pause(board, others, deadline)


def _others(board: Board, name: str, *, mine: bool = True) -> list[str]:
    """Names of the claims that want something that *name* wants; those of the dead are removed."""
    listed = board.listed()
    own = next((claim.modified for claim in listed if claim.name == name), None)
    if mine and not any(claim.name == name for claim in listed):
        raise SnapshotStorageError(
            f"{board.label} does not show an object that was just written to {DIRECTORY}; without that, no move can be "
            "exclusive. Nothing was moved."
        )
    rivals = [claim for claim in listed if claim.name != name and _parts(claim.name) & _parts(name)]
    dead = [claim.name for claim in rivals if _is_stale(claim, own)]
    for claim in dead:
        board.delete(claim)
    return [claim.name for claim in rivals if claim.name not in dead]


def _is_stale(claim: Listed, own: datetime | None) -> bool:
    if own is None or claim.modified is None:
        return False
    return (own - claim.modified).total_seconds() > STALE_SECONDS


def _pause(board: Board, others: Sequence[str], deadline: float) -> None:
    if now() > deadline:
        raise SnapshotStorageError(
            f"Another process has been moving an object of the same name in {board.label} for {WAIT_SECONDS:.0f} "
            f"seconds, or died while it did. If none is at work, delete {DIRECTORY}/{others[0]} there, or wait "
            f"{STALE_SECONDS / 60:.0f} minutes."
        )
    time.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - not a secret


def _parts(name: str) -> frozenset[str]:
    return frozenset(name.split("-")[:-1])


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
