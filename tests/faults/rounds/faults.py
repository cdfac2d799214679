"""What can go wrong in a round, and what the run may say of it afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from tests.faults.rounds.session import Session

Inflict = Callable[["Session"], str]
"""Does it; returns in words whom it hit."""

_LOCKED_SECONDS = 1.5
_PATIENCE = 4.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One sort of fault."""

    name: str
    inflict: Inflict
    may_fail: tuple[str, ...] = ()
    """Words of which one is in the error of a run that it fails; none if the run has to succeed all the same."""
    must_fail: bool = False
    orders: Callable[[str], dict[str, object]] = lambda _phase: {}
    """What the storage is told, for the phase that was drawn."""


def kill_worker(session: Session) -> str:
    """The main process of a worker that has a step, and with it its child."""
    worker = session.busy_worker()
    worker.kill("SIGKILL")
    return worker.name


def kill_child(session: Session) -> str:
    """The process that works on a step or finishes."""
    pid = session.busy_process()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"process {pid}"


def kill_tool(session: Session) -> str:
    """A dump tool, and not what started it."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for process in session.tools():
            with contextlib.suppress(psutil.Error):
                name = process.name()
                process.kill()
                return str(name)
        time.sleep(0.02)
    return "no tool was running"


def stop_gently(session: Session) -> str:
    """SIGTERM: a worker ends when its step has ended."""
    worker = session.busy_worker()
    os.kill(worker.pid, signal.SIGTERM)
    session.leaving.append(worker)
    return worker.name


def stop_softly(session: Session) -> str:
    """SIGQUIT: a worker has a moment of grace, and then gives its step back."""
    worker = session.busy_worker()
    os.kill(worker.pid, signal.SIGQUIT)
    session.leaving.append(worker)
    return worker.name


def sleep_past_the_lease(session: Session) -> str:
    """SIGSTOP, until somebody else has taken over, then SIGCONT."""
    worker = session.busy_worker()
    asleep = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in asleep:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    try:
        session.go()
        session.look_after_things(session.lease * 1.6)
    finally:
        for process in asleep:
            with contextlib.suppress(psutil.Error):
                process.resume()
    return worker.name


def restart_broker(session: Session) -> str:
    """The broker ends, and comes back."""
    session.go()
    session.broker.restart()
    return "the broker"


def flush_broker(session: Session) -> str:
    """Every message in the queue is lost."""
    session.broker.flush(session.app)
    return "the queue"


def restart_journal(session: Session) -> str:
    """The journal's database server ends and comes back; a SQLite file is locked for a while."""
    session.go()
    server = session.journal_server
    if server is not None:
        server.stop()
        server.start()
        server.wait_until_ready()
        return server.name
    with contextlib.closing(sqlite3.connect(session.journal_file, timeout=20)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(_LOCKED_SECONDS)
        connection.rollback()
    return "the journal's file"


def cancel(session: Session) -> str:
    """Somebody cancels the run."""
    return session.cancel()


def nothing(_session: Session) -> str:
    """The storage does it by itself."""
    return "the storage"


_ENDED_BY_HAND = ("was killed by SIGKILL", "killed", "connection", "server has gone away", "Lost connection")
_DATABASE_GONE = (
    *("connection", "Connection", "terminat", "gone away", "Lost connection", "server closed", "locked", "shut"),
    *("refused", "starting up", "recovery", "not answer", "SIGKILL", "Broken pipe", "reset"),
)

FAULTS = (
    Fault(name="SIGKILL of a worker", inflict=kill_worker),
    Fault(name="SIGKILL of a child", inflict=kill_child),
    Fault(name="SIGKILL of a dump tool", inflict=kill_tool, may_fail=_ENDED_BY_HAND),
    Fault(name="SIGTERM", inflict=stop_gently),
    Fault(name="soft shutdown", inflict=stop_softly),
    Fault(name="SIGSTOP past the lease", inflict=sleep_past_the_lease),
    Fault(name="broker restart", inflict=restart_broker),
    Fault(name="broker flush", inflict=flush_broker),
    Fault(name="database restart", inflict=restart_journal, may_fail=_DATABASE_GONE),
    Fault(
        name="storage fails",
        inflict=nothing,
        may_fail=("the storage broke as it was told to",),
        orders=lambda phase: {"fail": phase},
    ),
    Fault(
        name="storage hangs",
        inflict=nothing,
        may_fail=("Nothing has moved", "lost in the middle"),
        orders=lambda phase: {"hang": phase},
    ),
    Fault(name="storage fills up", inflict=nothing, may_fail=("No space left on device",), must_fail=False),
    Fault(name="cancel", inflict=cancel, may_fail=("Cancelled by olga",)),
)


def drawn(generator: random.Random, count: int) -> list[Fault]:
    """*count* faults, each as often as any other, in an order of chance."""
    found = [FAULTS[number % len(FAULTS)] for number in range(count)]
    generator.shuffle(found)
    return found
