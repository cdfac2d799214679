"""What can befall a restore."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from tests.projects import wait_until

if TYPE_CHECKING:
    from tests.faults.restores.session import Session
    from tests.projects import WorkerProcess

_PATIENCE = 20.0
_LATE = 30.0
_SERVER_AWAY_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One sort of fault; *inflict* does it, and returns in words whom it hit."""

    name: str
    inflict: Callable[[Session], str]
    engines: tuple[str, ...] = ("sqlite", "postgres", "mariadb")
    random_only: bool = False
    """Whether it can't be meant for a phase of the switch."""


def kill_worker(session: Session) -> str:
    """SIGKILL of a worker's whole process group: main process and child at once."""
    worker = session.busy_worker()
    _kill_group(worker)
    return worker.name


def _kill_group(worker: WorkerProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.kill("SIGKILL")


def kill_child(session: Session) -> str:
    """The process that restores, and not the worker that has it."""
    pid = session.busy_process()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"process {pid}"


def kill_settler_too(session: Session) -> str:
    """The worker, and then the one that finds out what became of it."""
    first = session.busy_worker()
    session.pause_at("restore: settling")
    _kill_group(first)
    if not session.look_after_things(_LATE, until=session.is_paused):
        return f"{first.name}, and nobody came to settle"
    second = session.busy_worker()
    time.sleep(session.random.choice((0.0, 0.05, 0.2)))
    _kill_group(second)
    return f"{first.name}, then {second.name}"


def kill_settler_at_work(session: Session) -> str:
    """The same, a moment after the second has begun."""
    first = session.busy_worker()
    session.pause_at("restore: settling")
    _kill_group(first)
    if not session.look_after_things(_LATE, until=session.is_paused):
        return f"{first.name}, and nobody came to settle"
    second = session.busy_worker()
    session.go()
    time.sleep(session.random.uniform(0.0, 0.3))
    _kill_group(second)
    return f"{first.name}, then {second.name} at work"


def kill_tool(session: Session) -> str:
    """A client program that loads a dump, the next one if none runs yet."""
    session.go()
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and not session.ended():
        for process in session.tools():
            with contextlib.suppress(psutil.Error):
                name = process.name()
                time.sleep(session.random.uniform(0, 0.3))
                process.kill()
                return str(name)
        time.sleep(0.005)
    return "no program was running"


def end_sessions(session: Session) -> str:
    """The server's processes that work for the restore."""
    return session.world.end_sessions(session.random, session.run.hex)


def kill_server(session: Session) -> str:
    """The whole server, which is started again a moment later."""
    session.world.kill_server()
    session.go()
    time.sleep(_SERVER_AWAY_SECONDS)
    session.world.start_server()
    return "the server"


def sleep_past_the_lease(session: Session) -> str:
    """SIGSTOP, until another worker has ended the run or can't, then SIGCONT."""
    worker, pid = session.busy_worker(), session.busy_process()
    asleep = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in asleep:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    try:
        session.go()
        taken = session.look_after_things(session.nap(), until=session.ended)
    finally:
        for process in asleep:
            with contextlib.suppress(psutil.Error):
                process.resume()
    wait_until(lambda: session.has_left(pid), f"process {pid} to find out that it has slept", _LATE)
    return f"{worker.name}, which woke {'after the end' if taken else 'before the end'}"


def nothing(_session: Session) -> str:
    """For comparison."""
    return "nobody"


_SERVERS = ("postgres", "mariadb")
FAULTS = (
    Fault(name="SIGKILL of the worker's group", inflict=kill_worker),
    Fault(name="SIGKILL of the child", inflict=kill_child),
    Fault(name="SIGKILL of the server", inflict=kill_server, engines=_SERVERS),
    Fault(name="SIGSTOP past the lease", inflict=sleep_past_the_lease),
    Fault(name="end of the server's session", inflict=end_sessions, engines=_SERVERS),
    Fault(name="SIGKILL of the settler too", inflict=kill_settler_too),
    Fault(name="SIGKILL of the settler at work", inflict=kill_settler_at_work),
    Fault(name="SIGKILL of the client program", inflict=kill_tool, engines=_SERVERS, random_only=True),
    Fault(name="nothing", inflict=nothing),
)


def faults_of(engine: str) -> list[Fault]:
    """Those that can befall a restore on *engine*."""
    return [fault for fault in FAULTS if engine in fault.engines]
