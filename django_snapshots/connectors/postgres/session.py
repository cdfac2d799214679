"""One ``psql`` that we talk to: statements in, answers out, and a token after each answer that proves its end."""

from __future__ import annotations

import contextlib
import queue
import secrets
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from django_snapshots.connectors.postgres.access import Access
from django_snapshots.connectors.postgres.clients import Clients
from django_snapshots.connectors.postgres.feeding import write_all
from django_snapshots.exceptions import SnapshotCancelled, SnapshotConnectorError
from django_snapshots.processes import Processes, Tool

_OPTIONS = ("--no-psqlrc", "--quiet", "--no-password", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")


class Session:
    """A running ``psql``. It stops at the first error, and its transaction ends with it unless it was committed."""

    def __init__(self, alias: str, processes: Processes, clients: Clients, reached: Access) -> None:
        self._alias = alias
        self._processes = processes
        argv: list[str | Path] = [
            clients.program("psql"),
            *_OPTIONS,
            "--set=SHOW_CONTEXT=never",
            f"--dbname={reached.conninfo}",
        ]
        self.tool: Tool = processes.start(argv, stdin=subprocess.PIPE, env=reached.env, secrets=reached.secrets)
        # Standard output is drained at all times: a psql that can't write reads no further.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="psql-stdout", daemon=True)
        self._reader.start()

    def write(self, data: bytes) -> None:
        """Send *data*; a ``psql`` that has ended raises ``SnapshotConnectorError`` with its own words."""
        try:
            write_all(self.tool.stdin.fileno(), data)
        except (BrokenPipeError, ValueError):
            raise self.failure() from None

    def ask(self, sql: str) -> list[str]:
        """Run *sql* and return the lines that it gives, once everything sent before it ran without an error."""
        return list(self.answers(sql))

    def answers(self, sql: str) -> Iterator[str]:
        """Like ``ask``, line by line; must be read to its end."""
        token = f"-- {secrets.token_hex(16)}"
        self.write(f"\n{sql}\n\\echo '{token}'\n".encode())
        while (line := self._lines.get()) != token:
            if line is None:
                raise self.failure()
            yield line

    def failure(self) -> SnapshotConnectorError | SnapshotCancelled:
        """Why ``psql`` ended; waits for that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.tool.wait(timeout=30)
        if self._processes.ended:
            return SnapshotCancelled(f"The restore of {self._alias!r} was ended.")
        return SnapshotConnectorError(f"The restore of {self._alias!r} failed: {self.tool.explain()}")

    def close(self) -> int:
        """Let ``psql`` end by itself; return its exit status."""
        self.tool.stdin.close()
        return self.tool.wait(timeout=60)

    def end(self) -> None:
        """Kill ``psql`` if it still runs; any number of times."""
        self.tool.kill()
        self._reader.join(timeout=10)
        self.tool.end()

    def _read(self) -> None:
        buffered = b""
        with contextlib.suppress(OSError, ValueError):
            for chunk in self.tool.chunks():
                *lines, buffered = (buffered + chunk).split(b"\n")
                for line in lines:
                    self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)
