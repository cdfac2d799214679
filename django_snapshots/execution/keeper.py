"""Keeps what one attempt holds: renews its lease, tells its progress, and ends the attempt when it has to end.

Who can die when: the keeper is two threads of the process that works. One shows life as long as that process lives,
also while an index is built and no byte moves. If the process dies or sleeps, the lease runs out. The other watches,
and asks nobody, so that a journal that doesn't answer can't hold it up: while the journal is away, the attempt goes on
for as long as its lease can only be its own, and then ends. If nothing moves for too long, the attempt is ended too; if
even that doesn't wake the thread that works, because it waits for a storage that hangs, whoever made the attempt is
told (``Hooks.stuck``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, connections

from django_snapshots import runs
from django_snapshots.conf import Limits
from django_snapshots.exceptions import SnapshotCancelled, SnapshotError
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")

Answer = TypeVar("Answer")

_STUCK_SECONDS = 30.0
_RETRY_SECONDS = 0.5
_LOOKS = 40
"""Looks in the time of a lease: often enough that an attempt ends within the margin of its lease."""
_LONGEST_LOOK = 1.0


class Keeper:
    """One lease in good hands; ``with keeper.at_work():`` around what it is for.

    *renew* asks the journal for more time and says what it answers. *stuck* is called, with the error that the attempt
    has to end with, when the thread that works doesn't react.
    """

    def __init__(
        self,
        lease: runs.Lease,
        renew: Callable[[], runs.Verdict],
        *,
        limits: Limits,
        stall: float | None = None,
        stuck: Callable[[SnapshotError], None] = lambda _error: None,
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        self.must_end: SnapshotError | None = None
        """Why the attempt has to end; the error to report, whatever the attempt itself then raises."""
        self.lost = False
        """Whether the right is gone: nothing that this attempt writes into the journal counts."""
        self.shielded = False
        """Whether nothing ends the attempt any more; then none of the above is why it failed."""
        self._lease = lease
        self._renew = renew
        self._limits = limits
        self._stall = stall
        self._stuck = stuck
        self._beside = beside
        self._ended = threading.Event()
        self._moved_at = runs.seconds_since_boot()
        self._beat_at = self._moved_at
        self._processes: Processes | None = None
        self._threaded = not runs.seen_by_this_thread_alone()

    @contextlib.contextmanager
    def at_work(self, processes: Processes | None = None) -> Iterator[None]:
        """Keep the lease while the block runs; *processes* are ended when the attempt has to end."""
        self._processes = processes
        if not self._threaded:
            yield
            return
        threads = [
            threading.Thread(target=self._keep, name="snapshots-lease", daemon=True),
            threading.Thread(target=self._watch, name="snapshots-watch", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(self._limits.lease)

    def moved(self) -> None:
        """Something moves; raises what the attempt has to end with."""
        self._moved_at = runs.seconds_since_boot()
        if not self._threaded and self._moved_at - self._beat_at >= self._limits.heartbeat():
            self._beat()
        self.check()

    def check(self) -> None:
        """Raise what the attempt has to end with, if it has to."""
        self._look_at_the_lease()
        if self.must_end is not None and not self.shielded:
            raise self.must_end

    def shield(self) -> None:
        """From here on nothing ends the attempt: to stop half-way would be worse. Raises if it has to end now."""
        self.check()
        self.shielded = True

    def through_outages(self, move: Callable[[], Answer]) -> Answer:
        """*move* the journal, again while it is away, as long as the lease can only be ours."""
        while True:
            try:
                return move()
            except (OperationalError, InterfaceError) as error:
                if not self._threaded or not self._lease.holds():
                    raise
                logger.warning("The journal does not answer; trying again: %s", redact(str(error)).strip())
                with contextlib.suppress(DatabaseError):
                    connections[runs.alias()].close()
                time.sleep(_RETRY_SECONDS)

    # The threads

    def _keep(self) -> None:
        try:
            while not self._ended.wait(self._limits.heartbeat()):
                self._beat()
                if self.must_end is not None and not self.shielded:
                    break
        except Exception:  # a thread that dies in silence would let the lease run out
            logger.exception("The lease of an attempt is not kept any more.")
        finally:
            connections.close_all()

    def _watch(self) -> None:
        try:
            while not self._ended.wait(min(_LONGEST_LOOK, self._limits.lease / _LOOKS)):
                self._look_at_the_lease()
                self._look_for_a_stall()
                if self.must_end is not None and not self.shielded:
                    self._end_attempt()
                    break
        except Exception:
            logger.exception("Nobody watches over an attempt any more.")
        finally:
            connections.close_all()

    def _beat(self) -> None:
        self._beat_at = runs.seconds_since_boot()
        try:
            verdict = self._renew()
            # An answer that came too late takes nothing back, but to one that nothing ends.
            self.lost = verdict.lost or (self.lost and not self.shielded)
            self.must_end = self.must_end or verdict.must_end
            self._beside()
        except DatabaseError as error:
            logger.warning("The journal does not answer: %s", redact(str(error)).strip())
            with contextlib.suppress(DatabaseError):
                connections[runs.alias()].close()

    def _look_for_a_stall(self) -> None:
        silent = runs.seconds_since_boot() - self._moved_at
        if self._stall is not None and silent > self._stall and self.must_end is None and not self.shielded:
            self.must_end = SnapshotError(
                f"Nothing has moved for {silent:.0f} s: the program, the server or the storage hangs. It was ended, as "
                f'SNAPSHOTS["STALL_LIMIT"] says.'
            )

    def _look_at_the_lease(self) -> None:
        # What no other thread can see, nobody takes away.
        if self._threaded and self.must_end is None and not self._lease.holds():
            self.lost = True
            self.must_end = SnapshotCancelled(
                "The journal could not be reached for so long that this attempt may have been given to another worker."
            )

    def _end_attempt(self) -> None:
        if self.shielded or self.must_end is None:
            return
        if self._processes is not None:
            self._processes.kill()
        if not self._ended.wait(min(_STUCK_SECONDS, self._limits.lease)) and not self.shielded:
            self._stuck(self.must_end)
