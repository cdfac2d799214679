"""Run all tests in several pytest processes side by side, each with private servers of its own.

``python -m tests.sharing [--processes N] [-- PYTEST'S ARGUMENTS]`` prints the lines of process N after ``N| `` and all
closing lines at its end. The exit status is that of a process that failed. Whatever ends it ends the processes and
their servers.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.services.__main__ import signals_end_this_process
from tests.services.servers import find_program
from tests.sharing import Share, SharingError, require_whole

_ENDS_WITHIN = 60.0


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sharing", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="how many (default: 2)")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    with signals_end_this_process(), tempfile.TemporaryDirectory(prefix="snapshots-share-") as directory:
        command = [sys.executable, "-m", "tests.services", "run", "--", *pytest_command(Path(directory))]
        return side_by_side([[*command, *arguments.pytest]] * arguments.processes, Share(Path(directory)))


def pytest_command(directory: Path) -> list[str]:
    """One of the pytest processes that have *directory* in common."""
    # What one process failed is not what the run failed, so none of them keeps it for --last-failed.
    plugins = ["-p", "tests.sharing.plugin", "-p", "no:cacheprovider"]
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    # As a word of its own, the directory would be one of the paths from which pytest finds its configuration.
    return [sys.executable, "-u", "-m", "pytest", *plugins, f"--share={directory}", *colour]


def side_by_side(commands: list[list[str]], share: Share) -> int:
    """Run *commands*, which share their tests; return 0 if all succeed and ran every test just once."""
    print_lock = threading.Lock()
    processes: list[_Process] = []
    try:
        for number, command in enumerate(commands, start=1):
            processes.append(_Process(f"{number}| ", command, print_lock))
        statuses = [process.wait() for process in processes]
    except BaseException as error:
        # A terminal has sent Control-C to them too, and a second one would cut their clean-up short.
        for process in processes:
            process.end(gently=isinstance(error, KeyboardInterrupt) and sys.stdin.isatty())
        raise
    print()
    for process in processes:
        print(process.prefix + process.last_line, flush=True)
    if any(statuses):
        return next(status for status in statuses if status)
    try:
        require_whole(share.reports())
    except SharingError as error:
        print(f"tests.sharing: {error}", file=sys.stderr)
        return 1
    return 0


class _Process:
    """A running command; what it prints is printed line by line after *prefix*."""

    def __init__(self, prefix: str, command: list[str], print_lock: threading.Lock) -> None:
        self.prefix = prefix
        self.last_line = ""
        self._print_lock = print_lock
        # A process that outlived this one would keep its servers.
        argv = [str(find_program("setpriv")), "--pdeathsig=TERM", "--", *command]
        self._popen = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._printer = threading.Thread(target=self._print, daemon=True)
        self._printer.start()

    def _print(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip("\n")
                self.last_line = text or self.last_line
                with self._print_lock:
                    print(self.prefix + text, flush=True)

    def wait(self) -> int:
        """Wait for its end and its last line; return its exit status."""
        status = self._popen.wait()
        self._printer.join(_ENDS_WITHIN)  # something that it left running may still hold the pipe
        return status if status >= 0 else 128 - status

    def end(self, *, gently: bool) -> None:
        """End it, or let it end by itself if that is *gentle*; it gets a while to stop its servers."""
        if not gently:
            self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_ENDS_WITHIN)
        self._popen.kill()
        self._printer.join(_ENDS_WITHIN)


if __name__ == "__main__":
    sys.exit(main())
