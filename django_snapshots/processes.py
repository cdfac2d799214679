"""Outside programs: started so that they die with their worker, watched, explained, and always ended.

Who can die when: a program dies with the thread that started it (``_launch.py``), so start it from the thread that
reads it; ``Processes.kill`` ends the whole process group from any thread; leaving ``with Processes()`` ends what is
left. What then holds: no program outlives its attempt, and a program that was killed is never taken for complete,
because ``Tool.wait`` gives a status that isn't 0.
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

from django_snapshots.exceptions import SnapshotCancelled
from django_snapshots.redaction import redact

_LAUNCHER = Path(__file__).with_name("_launch.py")
_PIPE_SIZE = 1024 * 1024
_READ_SIZE = 256 * 1024
_STDERR_KEPT = 16 * 1024
_STDERR_SHOWN = 4000
_POLL_SECONDS = 0.01


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
    """One running program. Read ``chunks``, write ``stdin``, then ``wait``; ``explain`` says how it ended."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, secrets: Sequence[str]) -> None:
        self.name = name
        self.pid = popen.pid
        self._popen = popen
        self._secrets = tuple(secrets)
        self._stderr = b""
        self._stderr_lost = False
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
        return self._popen.returncode

    def running(self) -> bool:
        """Whether the program has not ended yet."""
        if self._popen.returncode is None and self._has_ended():
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
        running, status = self.running(), self._popen.returncode
        if running or status is None:
            how = "is still running"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"exited with status {status}"
        words = self.stderr
        return f"{self.name} {how}: {words}" if words else f"{self.name} {how} and said nothing"

    def end(self) -> None:
        """Kill the program's whole process group if it still runs, reap it, close its pipes; any number of times."""
        self.kill()
        self._await(None)
        self._reap()
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._stderr_reader.join(timeout=5)

    def kill(self) -> None:
        """Kill the process group from any thread; the owner still calls ``end``."""
        with self._reaping:
            if self._popen.returncode is None:
                self._kill_group()

    def terminate(self) -> None:
        """Ask the process group to end (SIGTERM); the owner still waits and calls ``end``."""
        with self._reaping:
            if self._popen.returncode is None:
                self._kill_group(signal.SIGTERM)

    def _kill_group(self, number: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _reap(self) -> None:
        """After the program has ended: end what it has left running, too.

        The group outlives its leader if a grandchild runs on. Its number can't be used again before the leader is
        reaped, so the group is killed first.
        """
        with self._reaping:
            if self._popen.returncode is None:
                self._kill_group()
                self._popen.wait()

    def _await(self, timeout: float | None) -> None:
        if timeout is None:
            if self._popen.returncode is None:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            return
        deadline = time.monotonic() + timeout
        while self._popen.returncode is None and not self._has_ended():
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.name, timeout)
            time.sleep(_POLL_SECONDS)

    def _has_ended(self) -> bool:
        """Whether it could be reaped; leaves it as it is."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
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
        """Start ``argv[0]`` (an absolute path) in a session of its own.

        *env* is added to this process's environment. Secrets go there or into a private file, never into *argv*;
        *secrets* are removed from what it says, besides the passwords of ``DATABASES``. Raises
        ``SnapshotCancelled`` once the attempt has been ended.
        """
        command = [str(item) for item in argv]
        with self._lock:
            if self._closed:
                raise SnapshotCancelled(f"{Path(command[0]).name} was not started: the run has been ended.")
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
                env={**os.environ, **(env or {})},
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=cwd,
                start_new_session=True,
                bufsize=0,
            )
            tool = Tool(popen, Path(command[0]).name, secrets)
            self._tools.append(tool)
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
        self.kill()
        for tool in self._tools:
            tool.end()


def _enlarge(stream: IO[bytes] | None) -> None:
    """A pipe of 64 KiB makes both sides take turns; the kernel may refuse a larger one, which costs only time."""
    if stream is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
