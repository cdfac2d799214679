"""Start the private servers, run a command that uses them, and stop them whatever happened.

``python -m tests.services run -- COMMAND ...`` returns the command's exit status; the servers die with this process.
``python -m tests.services start DIRECTORY`` leaves them running and prints the line to evaluate in a shell;
``python -m tests.services stop DIRECTORY`` ends those and removes the directory.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from tests.services import ENVIRONMENT_VARIABLE, Server, ServiceError, read, save
from tests.services.rabbitmq import RabbitMQ
from tests.services.servers import MariaDB, Postgis, Postgres, Redis, Service, find_program

SERVICES: tuple[type[Service], ...] = (Postgres, Postgis, MariaDB, Redis, RabbitMQ)
_ROOT = Path(__file__).resolve().parent.parent.parent
_STATE = "services.json"
_LOCK = "lock"
_PREFIX = "snapshots-"
_PARENT = "/tmp"  # and not $TMPDIR: the path of a Unix socket has to be short
_COMMAND_ENDS_WITHIN = 30.0


def main() -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args()
    try:
        if arguments.action == "run":
            return _run(arguments.command)
        if arguments.action == "start":
            return _start(arguments.directory.absolute())
        return _stop(arguments.directory.absolute())
    except (ServiceError, ImportError, OSError) as error:
        print(f"tests.services: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="start the servers, run a command, stop them")
    run.add_argument("command", nargs="+", help="the command and its arguments, after --")
    for name, text in (("start", "start the servers and leave them running"), ("stop", "stop those of a directory")):
        action = actions.add_parser(name, help=text)
        action.add_argument("directory", type=Path)
    return parser


def _run(command: list[str]) -> int:
    with signals_end_this_process():
        _remove_abandoned()
        # Else, where PYTHONDONTWRITEBYTECODE is set, each of thousands of processes compiles all of it anew.
        for package in ("django_snapshots", "tasks", "tests"):
            compileall.compile_dir(_ROOT / package, quiet=2)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT))
        try:
            with _locked(directory), _started(directory, lives_on=False):
                return _run_command(command, directory / _STATE)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock in *directory* that ends with this process, however it ends."""
    with (directory / "lock.new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "lock.new").rename(directory / _LOCK)  # Whoever sees it sees it locked.
        yield


def _remove_abandoned() -> None:
    """Remove the directories of runs that were killed: nobody holds their lock."""
    for path in Path(_PARENT).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


def _run_command(command: list[str], state: Path) -> int:
    """Run *command* to its end; a signal that ends this process ends it first."""
    argv = [str(find_program("setpriv")), "--pdeathsig=KILL", "--", *command]
    process = subprocess.Popen(argv, env={**os.environ, ENVIRONMENT_VARIABLE: str(state)})
    try:
        status = process.wait()
    except BaseException as error:
        # A terminal has sent Control-C to the command too, and a second one would cut its clean-up short.
        if not (isinstance(error, KeyboardInterrupt) and sys.stdin.isatty()):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_COMMAND_ENDS_WITHIN)
        raise
    finally:
        process.kill()
        process.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def signals_end_this_process() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``SystemExit``, so that every ``finally`` runs; SIGINT raises ``KeyboardInterrupt``."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    # A shell starts what runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _start(directory: Path) -> int:
    if (directory / _STATE).exists():
        raise ServiceError(f"{directory} holds running services already; stop them first.")
    directory.mkdir(parents=True, exist_ok=True)
    with _started(directory, lives_on=True) as services:
        for service in services:
            service.release()
    print(f"export {ENVIRONMENT_VARIABLE}={shlex.quote(str(directory / _STATE))}")
    return 0


def _stop(directory: Path) -> int:
    state = directory / _STATE
    if not state.exists():
        raise ServiceError(f"{directory} holds no services: there is no {_STATE}.")
    for server in read(state).values():
        _end(server, directory)
    for service in SERVICES:
        shutil.rmtree(directory / service.name, ignore_errors=True)
    state.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()
    return 0


def _end(server: Server, directory: Path) -> None:
    """Stop a server of another process; a process that only has its number by now is left alone."""
    process = Path("/proc") / str(server.pid)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if not _is_of(process, directory):
            return
        stop_signal = next(service.stop_signal for service in SERVICES if service.name == server.name)
        os.kill(server.pid, stop_signal)
        deadline = time.monotonic() + 15
        while (process / "cmdline").read_bytes():
            if time.monotonic() > deadline:
                os.kill(server.pid, signal.SIGKILL)
            time.sleep(0.02)


def _is_of(process: Path, directory: Path) -> bool:
    """Whether a process is a server of *directory*: it names it, or, as Redis hides its arguments, it works in it."""
    named = os.fsencode(directory) in (process / "cmdline").read_bytes()
    return named or (process / "cwd").readlink().is_relative_to(directory)


@contextlib.contextmanager
def _started(directory: Path, *, lives_on: bool) -> Iterator[list[Service]]:
    """All services, started side by side; stopped on leaving, except those that live on."""
    directory.chmod(0o755)
    services = [service(directory, lives_on=lives_on) for service in SERVICES]
    done = False
    try:
        _bring_up(services)
        save(directory / _STATE, [service.server() for service in services])
        yield services
        done = True
    finally:
        if not (lives_on and done):
            for service in services:
                service.stop()
                shutil.rmtree(service.directory, ignore_errors=True)


def _bring_up(services: list[Service]) -> None:
    with ThreadPoolExecutor(len(services)) as threads:
        for service in services:
            service.make_directory()
        # Each is prepared in a thread; a server dies with the thread that starts it, so that is this one.
        prepared = [threads.submit(service.prepare) for service in services]
        for service, preparation in zip(services, prepared, strict=True):
            preparation.result()
            service.start()
        for service in services:
            if service.awaited:
                service.wait_until_ready()


if __name__ == "__main__":
    sys.exit(main())
