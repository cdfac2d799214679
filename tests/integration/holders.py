"""Starts ``session_holder``, puts it to sleep with everything it started, and wakes it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.conftest import entry
from tests.projects import ROOT, Project
from tests.services import Server


class Holder:
    """One process in the middle of a dump or a restore."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def sleep(self) -> None:
        """Stop it and its programs, as a machine does that is put to sleep."""
        for pid in (self._process.pid, *_children(self._process.pid)):
            os.kill(pid, signal.SIGSTOP)

    def wake(self) -> str:
        """Let all of it go on; what it says at last."""
        for pid in (*_children(self._process.pid), self._process.pid):
            os.kill(pid, signal.SIGCONT)
        said, _ = self._process.communicate("go on\n", timeout=60)
        return said.strip()


@contextlib.contextmanager
def holding(directory: Path, alias: str, server: Server, *arguments: Any, **changes: Any) -> Iterator[Holder]:
    """A holder of *alias* that is ready; its entry of ``DATABASES`` has *changes*."""
    project = Project(directory=directory, databases={"default": {**entry(alias), **changes}})
    project.extra_environment["PATH"] = f"{server.bin_directory}:{project.environment()['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.session_holder", *map(str, arguments)],
        env=project.environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "ready\n", line
            yield Holder(process)
        finally:
            if process.poll() is None:
                process.kill()


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
