"""Python command lines of a project, each in a process of its own that need not load the project's apps first.

Loading Django, Celery and the apps takes more than a second, and a test asks its project several things. So an
interpreter that has loaded them, and has done nothing else, waits; it runs each command line in a fork of itself. The
fork opens its own connections, leaves nothing to the next one, and ends as any program does, with its output and its
exit status. Another environment, or a module that was written meanwhile, gets another interpreter; a project that
can't be loaded, or a command line beside another one, gets an ordinary process.

Nearly every test has an environment of its own. Most of what a project loads needs no settings, so an interpreter is
in its turn a fork: of a process that has imported that, and knows no project.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

_WITHIN = 240.0
_LARGEST_PACKET = 100_000
_VARIES = "PYTEST_CURRENT_TEST"  # pytest changes it within one test, and no project asks for it
_READ_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ")
"""How variables begin that a process heeds once, before any line of a program."""
_NEED_NO_PROJECT = frozenset(
    {
        *("amqp", "billiard", "blake3", "celery", "cron_descriptor", "django", "django_celery_beat"),
        *("django_snapshots", "kombu", "MySQLdb", "psycopg", "psycopg_binary", "redis", "vine"),
    }
)
"""The packages whose modules are imported beforehand, as far as they need no settings."""
_OF_TESTS = ("celery.contrib.", "django.test")


def run(
    argv: Sequence[str], environment: dict[str, str], *, directory: Path, modules: Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python`` with *argv* (``-c CODE``, ``-m MODULE``) in *directory* to its end, with just this *environment*.

    *modules* is a directory from which the project may import modules that a test wrote.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors, _input(stdin) as given:
        streams = (given, output, errors)
        status = _waiting.run(argv, environment, directory, modules, streams)
        if status is None:
            status = subprocess.call(
                [sys.executable, *argv],
                env=environment,
                cwd=directory,
                **dict(zip(("stdin", "stdout", "stderr"), streams, strict=True)),
                timeout=_WITHIN,
            )
        for stream in (output, errors):
            stream.seek(0)
        return subprocess.CompletedProcess([sys.executable, *argv], status, output.read(), errors.read())


def _input(text: str | None) -> IO[str]:
    if text is None:
        return open(os.devnull)
    file = tempfile.TemporaryFile("w+")
    file.write(text)
    file.seek(0)
    return file


class _Ground:
    """A process without a project, of which interpreters are forks."""

    def __init__(self, environment: dict[str, str], directory: Path, modules: Iterable[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.interpreter", str(theirs.fileno())],
                env={name: value for name, value in environment.items() if name != "DJANGO_SETTINGS_MODULE"},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._control.send(json.dumps(list(modules)).encode())

    def fork(self, environment: dict[str, str]) -> socket.socket | None:
        """What leads to a new interpreter with this *environment*; None if it can't be told so much."""
        request = json.dumps(environment).encode()
        if len(request) > _LARGEST_PACKET:
            return None
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(_WITHIN)
        with theirs:
            socket.send_fds(self._control, [request], [theirs.fileno()])
        return control

    def end(self) -> None:
        """End it; its interpreters end when nobody can ask them any more."""
        self._control.close()
        self._process.wait()


class _Interpreter:
    """One that waits, with a project's apps loaded."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.is_loaded = self._answer() is not None

    def _answer(self) -> int | None:
        packet = self._control.recv(_LARGEST_PACKET)
        return int(packet) if packet else None

    def run(self, argv: Sequence[str], streams: Sequence[IO[str]]) -> int | None:
        """Run *argv* with these standard streams; return its exit status."""
        request = json.dumps(list(argv)).encode()
        if len(request) > _LARGEST_PACKET:
            return None
        socket.send_fds(self._control, [request], [stream.fileno() for stream in streams])
        pid, status = self._answer(), None
        try:
            status = self._answer()
        finally:
            if status is None and pid is not None:
                os.kill(pid, signal.SIGKILL)
        if status is None:
            raise RuntimeError("The interpreter ended before what it ran.")
        return status

    def end(self) -> None:
        """Let it end; what it ran has ended."""
        self._control.close()


class _Waiting:
    """The one interpreter that waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: Any = None
        self._interpreter: _Interpreter | None = None
        self._ground: _Ground | None = None

    def run(
        self,
        argv: Sequence[str],
        environment: dict[str, str],
        directory: Path,
        modules: Path,
        streams: Sequence[IO[str]],
    ) -> int | None:
        """The exit status of *argv*; None if it has to be run by itself."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            wanted = (_without_what_varies(environment), directory, _state(modules))
            if self._interpreter is None or self._of != wanted:
                self._end_interpreter()
                control = self._fork(environment, directory)
                if control is None:
                    return None
                self._of, self._interpreter = wanted, _Interpreter(control)
            return self._interpreter.run(argv, streams) if self._interpreter.is_loaded else None
        except BaseException:
            self.end()
            raise
        finally:
            self._lock.release()

    def _fork(self, environment: dict[str, str], directory: Path) -> socket.socket | None:
        usual = {**os.environ, "PYTHONPATH": str(directory)}
        if _read_at_start(environment) != _read_at_start(usual):
            ground = _Ground(environment, directory, ())
            try:
                return ground.fork(environment)
            finally:
                ground.end()
        if self._ground is None:
            self._ground = _Ground(usual, directory, _modules())
        return self._ground.fork(environment)

    def _end_interpreter(self) -> None:
        if self._interpreter is not None:
            self._interpreter.end()
            self._interpreter = None

    def end(self) -> None:
        """End the interpreter and what it is a fork of, if they are there."""
        self._end_interpreter()
        if self._ground is not None:
            self._ground.end()
            self._ground = None


def _read_at_start(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def _modules() -> list[str]:
    """What this process, in which the test project is loaded, has of the packages that need none."""
    found = (name for name in sys.modules if name.partition(".")[0] in _NEED_NO_PROJECT)
    return sorted(name for name in found if not name.startswith(_OF_TESTS))


def _without_what_varies(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != _VARIES}


def _state(modules: Path) -> dict[str, int]:
    """When each module in *modules* was written."""
    return {str(path): path.stat().st_mtime_ns for path in modules.rglob("*.py")}


_waiting = _Waiting()
atexit.register(_waiting.end)


def import_all(modules: Iterable[str]) -> None:
    """Import those of *modules* that need no settings, and leave nothing of the others."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            # Its submodules would not be found in the package when that is imported again.
            for below in [key for key in sys.modules if f"{key}.".startswith(f"{name}.")]:
                del sys.modules[below]


def forks(control: socket.socket) -> tuple[dict[str, str], socket.socket] | None:
    """Make an interpreter of each environment that comes in a fork: there it returns that and what leads to who asks;
    in this process, nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to this process too
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        request, descriptors, *_ = socket.recv_fds(control, _LARGEST_PACKET, 1)
        if not request:
            return None
        (descriptor,) = descriptors
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return json.loads(request), socket.socket(fileno=descriptor)
        os.close(descriptor)


def serve(control: socket.socket) -> list[str] | None:
    """Run each command line that comes in a fork: there it returns the command line; in this process, nothing."""
    control.send(b"0")
    while True:
        request, descriptors, *_ = socket.recv_fds(control, _LARGEST_PACKET, 3)
        if not request:
            return None
        pid = os.fork()
        if pid == 0:
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return list(json.loads(request))
        control.send(str(pid).encode())
        control.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def become(option: str, program: str, arguments: list[str]) -> None:
    """Do what ``python OPTION PROGRAM ARGUMENTS`` does."""
    if option == "-m":
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(sys.modules["__main__"]))


def main() -> None:
    """Wait for environments; in a fork, load the project's apps, and wait for command lines."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        import_all(json.loads(control.recv(_LARGEST_PACKET)))
        gc.collect()
        gc.freeze()
        found = forks(control)
    if found is None:
        return
    environment, own = found
    os.environ.clear()
    os.environ.update(environment)
    import django

    django.setup()
    gc.collect()
    gc.freeze()
    with own:
        argv = serve(own)
    if argv:
        become(argv[0], argv[1], argv[2:])


if __name__ == "__main__":
    main()
