"""Works on the steps of an inline run in threads, phase by phase."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from django.db import connections

from django_snapshots.exceptions import SnapshotError
from django_snapshots.plan import PlannedStep
from django_snapshots.processes import Processes

Work = Callable[[PlannedStep, Callable[[], None]], None]
"""Works on a step and calls the function that it is given as soon as the step's moment is fixed."""


_LOOK_SECONDS = 0.5

INTERRUPTED = "It was interrupted: the process that did it was told to end."


class Stop:
    """Ends every attempt of an inline run when the thread that waits for them is interrupted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts: list[Processes] = []
        self._stopped = False

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Processes]:
        """The programs of one attempt; one that begins after the end can start none.

        What fails after the end fails because of it, whatever its program or connector says.
        """
        with Processes() as processes:
            with self._lock:
                self._attempts.append(processes)
                stopped = self._stopped
            if stopped:
                processes.kill()
            try:
                yield processes
            except Exception as error:
                if self._stopped:
                    raise SnapshotError(INTERRUPTED) from error
                raise

    def now(self) -> None:
        """End them all; each notices at its next chunk, or when its program is gone."""
        with self._lock:
            self._stopped = True
            attempts = list(self._attempts)
        for processes in attempts:
            processes.kill()


def run(steps: Sequence[PlannedStep], work: Work, *, at_once: int, stop: Stop) -> None:
    """Work on all *steps*, at most *at_once* in threads; those of a later phase wait for every earlier moment.

    *work* must not raise; what it raises all the same comes out once every step has ended. An interrupt of this thread
    stops them first. An in-memory database, and what a Django TestCase has written, can be seen by this thread alone;
    then everything happens here, one step after another.
    """
    ordered = sorted(steps, key=lambda step: (step.phase, step.position))
    if at_once == 1 or len(ordered) == 1 or _has_memory_database() or _in_transaction():
        for step in ordered:
            work(step, lambda: None)
        return
    gate = _Gate([step for step in ordered if step.phase == 0])
    with ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="snapshot") as pool:
        # First in, first out: a step of the first phase never waits behind one of the second.
        futures = [pool.submit(_work_behind, gate, step, work) for step in ordered]
        try:
            # A signal that comes just before a wait without an end is heard only after it.
            while wait(futures, timeout=_LOOK_SECONDS).not_done:
                pass
        except BaseException:
            stop.now()
            raise
    for future in futures:
        future.result()


def _work_behind(gate: _Gate, step: PlannedStep, work: Work) -> None:
    try:
        gate.wait(step)
        work(step, lambda: gate.passed(step))
    finally:
        gate.passed(step)
        connections.close_all()


class _Gate:
    """Opens when every step of the first phase has fixed its moment or ended."""

    def __init__(self, first: Sequence[PlannedStep]) -> None:
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._missing = {step.position for step in first}
        if not self._missing:
            self._open.set()

    def passed(self, step: PlannedStep) -> None:
        with self._lock:
            self._missing.discard(step.position)
            if not self._missing:
                self._open.set()

    def wait(self, step: PlannedStep) -> None:
        if step.phase:
            self._open.wait()


def _in_transaction() -> bool:
    return any(connection.in_atomic_block for connection in connections.all(initialized_only=True))


def _has_memory_database() -> bool:
    return any(
        connections[alias].vendor == "sqlite" and connections[alias].is_in_memory_db()  # type: ignore[attr-defined]
        for alias in connections
    )
