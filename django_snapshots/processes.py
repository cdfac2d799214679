"""Outside programs: started so that they die with their worker, watched, explained, and always ended.

Each program has a launcher beside it (``_launch.py``), which ends it together with all that it started. Who can die
when: a program dies with the thread that started it, so start it from the thread that reads it; ``Processes.kill``
ends everything from any thread; leaving ``with Processes()`` ends what is left. What then holds: no program outlives
its attempt, and a program that was killed is never taken for complete, because ``Tool.wait`` gives a status that
isn't 0.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from django_snapshots._launch import ASK, END
from django_snapshots.exceptions import SnapshotCancelled
from django_snapshots.redaction import redact

_LAUNCHER = Path(__file__).with_name("_launch.py")
_PIPE_SIZE = 1024 * 1024
_READ_SIZE = 256 * 1024
_STDERR_KEPT = 16 * 1024
_STDERR_SHOWN = 4000
_POLL_SECONDS = 0.01
_KILLED_WITHIN = 2.0
_UNKNOWN_STATUS = 255
_MEANING = {ASK: signal.SIGTERM, END: signal.SIGKILL}


def find_program(names: Sequence[str], directories: Sequence[str | Path] = ()) -> Path | None:
    """Return the first of *names* found in *directories*, then on ``PATH``; ``None`` if there is none."""
    for directory in directories:
        for name in names:
            candidate = shutil.which(name, path=str(directory))
            if candidate:
                return Path(candidate)
    for name in names:
        candidate = shutil.which(name)
        if candidate:
            return Path(candidate)
    return None


class Tool:
    """One running program. Read ``chunks``, write ``stdin``, then ``wait``; ``explain`` says how it ended.

    ``pid`` is its launcher's, which leads its process group, passes SIGTERM on to it, and ends as it does.
    """

    def __init__(self, popen: subprocess.Popen[bytes], name: str, secrets: Sequence[str]) -> None:
        self.name = name
        self.pid = popen.pid
        self._popen = popen
        self._secrets = tuple(secrets)
        self._stderr = b""
        self._stderr_lost = False
        self._status_lost = False
        self._sent: set[signal.Signals] = set()
        self._reaping = threading.Lock()
        self._stderr_reader = threading.Thread(target=self._collect, name=f"{name}-stderr", daemon=True)
        self._stderr_reader.start()

    @property
    def stdin(self) -> IO[bytes]:
        """The program's standard input; only if it was started with ``stdin=PIPE``."""
        assert self._popen.stdin is not None  # noqa: S101 - a promise to the type checker
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """The program's standard output; only if it was started with ``stdout=PIPE``."""
        assert self._popen.stdout is not None  # noqa: S101
        return self._popen.stdout

    def chunks(self, size: int = _READ_SIZE) -> Iterator[bytes]:
        """Standard output to its end, in chunks of at most *size* bytes. Its end does not mean success: ``wait``."""
        descriptor = self.stdout.fileno()
        while chunk := os.read(descriptor, size):
            yield chunk

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status, or the negative number of the signal that ended it.

        Raises ``subprocess.TimeoutExpired`` after *timeout* seconds.
        """
        self._await(timeout)
        self._reap()
        self._stderr_reader.join(timeout=5)
        status = self._status
        assert status is not None  # noqa: S101
        return status

    def running(self) -> bool:
        """Whether the program has not ended yet."""
        if self._popen.returncode is None and self._is_over():
            self._reap()
        return self._popen.returncode is None

    @property
    def stderr(self) -> str:
        """The last lines of standard error, without secrets."""
        kept = self._stderr
        if self._stderr_lost:
            # What came before the first whole line is lost, and with it perhaps the beginning of a secret.
            kept = kept.partition(b"\n")[2] or kept[_STDERR_SHOWN:]
        return redact(kept.decode(errors="replace").strip(), self._secrets)[-_STDERR_SHOWN:]

    def explain(self) -> str:
        """How it ended, in a sentence, with its own words: ``pg_dump exited with status 1: ...``."""
        running, status = self.running(), self._status
        if running or status is None:
            how = "is still running"
        elif self._status_lost:
            how = "ended, but something else in this process took its exit status"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"exited with status {status}"
        words = self.stderr
        return f"{self.name} {how}: {words}" if words else f"{self.name} {how} and said nothing"

    def end(self) -> None:
        """Kill the program with all that it started, reap it, close its pipes; any number of times."""
        try:
            self.kill()
            self._await(None)
            self._reap()
        finally:
            for stream in (self._popen.stdin, self._popen.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._stderr_reader.join(timeout=5)

    def kill(self) -> None:
        """Kill the program with all that it started, from any thread; the owner still calls ``end``.

        The launcher does it, because it alone finds what has left the process group; that takes milliseconds. If it
        does not answer within two seconds, the group is killed.
        """
        with self._reaping:
            deadline = time.monotonic() + _KILLED_WITHIN
            # Asked again and again: a launcher that is only beginning may not hear the first time.
            while not self._is_over() and time.monotonic() < deadline:
                self._send(END)
                time.sleep(_POLL_SECONDS / 4)
            self._kill_group()

    def terminate(self) -> None:
        """Ask the program and all of its process group to end (SIGTERM); the owner still waits and calls ``end``."""
        with self._reaping:
            if not self._is_over():
                self._send(ASK)

    def _send(self, number: signal.Signals) -> None:
        self._sent.add(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _kill_group(self) -> None:
        """Kill who is left in the process group; its number is its own until the launcher is reaped."""
        if self._popen.returncode is None and not self._status_lost:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        """After the launcher has ended: end what a launcher that was killed has left in the group, too."""
        with self._reaping:
            if self._popen.returncode is None:
                self._kill_group()
                self._popen.wait()

    @property
    def _status(self) -> int | None:
        """How the program ended; a launcher that a signal of ours ended before it began counts for the program."""
        status = self._popen.returncode
        if status is None:
            return None
        if self._status_lost:
            return _UNKNOWN_STATUS
        return next((-_MEANING[number] for number in self._sent if number == -status), status)

    def _await(self, timeout: float | None) -> None:
        if timeout is None:
            if self._popen.returncode is None:
                self._look(block=True)
            return
        deadline = time.monotonic() + timeout
        while not self._is_over():
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.name, timeout)
            time.sleep(_POLL_SECONDS)

    def _is_over(self) -> bool:
        """Whether it was reaped or could be."""
        return self._popen.returncode is not None or self._look(block=False)

    def _look(self, *, block: bool) -> bool:
        """Whether it has ended, without reaping it, so that its number stays its own."""
        if not hasattr(os, "waitid"):
            return self._look_and_reap(block)
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | (0 if block else os.WNOHANG)) is not None
        except ChildProcessError:
            # Where SIGCHLD is ignored the kernel has reaped it, and how it ended is not known.
            self._status_lost = self._popen.returncode is None
            return True

    def _look_and_reap(self, block: bool) -> bool:
        """Where the system only looks by reaping (macOS): then end at once what is left in the group."""
        if block:
            self._popen.wait()
        if self._popen.poll() is None:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _collect(self) -> None:
        stream = self._popen.stderr
        assert stream is not None  # noqa: S101
        with stream:
            while piece := stream.read(_STDERR_KEPT):
                heard = self._stderr + piece
                self._stderr_lost |= len(heard) > _STDERR_KEPT
                self._stderr = heard[-_STDERR_KEPT:]


class Processes:
    """All programs of one attempt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tools: list[Tool] = []
        self._closed = False

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        cwd: Path | None = None,
        secrets: Sequence[str] = (),
    ) -> Tool:
        """Start ``argv[0]`` (an absolute path) in a session and a process group of its own.

        *env* is added to this process's environment. Secrets go there or into a private file, never into *argv*;
        *secrets* are removed from what it says, besides the passwords of ``DATABASES``. Raises
        ``SnapshotCancelled`` once the attempt has been ended.
        """
        command = [str(item) for item in argv]
        name = Path(command[0]).name
        with self._lock, _Gate() as gate, contextlib.ExitStack() as undo:
            if self._closed:
                raise SnapshotCancelled(f"{name} was not started: the run has been ended.")
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(gate.entrance), *command],
                env={**os.environ, **(env or {})},
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=cwd,
                pass_fds=[gate.entrance],
                start_new_session=True,
                bufsize=0,
            )
            undo.enter_context(popen)
            undo.callback(gate.close)
            tool = Tool(popen, name, secrets)
            self._tools.append(tool)
            undo.pop_all()
            gate.open()
        for stream in (popen.stdin, popen.stdout):
            _enlarge(stream)
        return tool

    @property
    def ended(self) -> bool:
        """Whether ``kill`` was called: whoever waits for something else than a program looks here."""
        return self._closed

    def kill(self) -> None:
        """End every program, now and from any thread; none can be started afterwards."""
        with self._lock:
            self._closed = True
            tools = list(self._tools)
        for tool in tools:
            tool.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whatever interrupts one end, the others are ended too.
        with contextlib.ExitStack() as stack:
            for tool in self._tools:
                stack.callback(tool.end)
            self.kill()


class _Gate:
    """Lets a program begin only once it is on the list of those that will be ended.

    An interrupt may come between a start and its record, in a task by a time limit. The gate is then left without
    being opened, which its launcher sees as the end of a pipe, and goes.
    """

    def __init__(self) -> None:
        self.entrance, self._exit = os.pipe()

    def open(self) -> None:
        # A launcher that has ended already says so by its status.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._exit, b"!")

    def close(self) -> None:
        for descriptor in (self._exit, self.entrance):
            if descriptor >= 0:
                os.close(descriptor)
        self.entrance = self._exit = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _enlarge(stream: IO[bytes] | None) -> None:
    """A pipe of 64 KiB makes both sides take turns; the kernel may refuse a larger one, which costs only time."""
    if stream is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
