"""Processes that are forked from one that has loaded Django already: most of a short process's time is that loading.

``python -m tests.integration.forked MODULE`` does ``MODULE.load()``, and forks for each line that it reads.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Self


@functools.cache
def _loaded(module: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.forked", module],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # ends with its standard input
    return process


class Forked:
    """A process that does ``MODULE.main(*arguments)``; to be used as a ``subprocess.Popen``."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._parent = _loaded(module)
        self._out = tempfile.NamedTemporaryFile("r")
        self.returncode: int | None = None
        self.pid: int = self._ask({"run": arguments, "out": self._out.name})

    def _ask(self, question: Any) -> Any:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(json.dumps(question), file=self._parent.stdin, flush=True)
        return json.loads(self._parent.stdout.readline())

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < end, "the process does not end"
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 60) -> tuple[str, None]:
        self.wait(timeout)
        return self._out.read(), None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self._out.close()


def _run(module: Any, arguments: list[str], out: str) -> None:
    descriptor = os.open(out, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        module.main(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def _serve(name: str) -> None:
    module = importlib.import_module(name)
    module.load()
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if "run" in asked:
            if not (answer := os.fork()):
                _run(module, asked["run"], asked["out"])
        else:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
