"""Loads a script with the engine's own client, to its proven end."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from django_snapshots.connectors.mysql.client import Client
from django_snapshots.connectors.mysql.scan import without_sandbox
from django_snapshots.connectors.mysql.server import LONGEST, Server
from django_snapshots.connectors.mysql.sessions import Marks
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Processes, Tool

_LOCK_WAIT = 600
_MAX_PACKET = "1G"


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Runs the client over statements, in one schema."""

    db_alias: str
    server: Server
    client: Client
    processes: Processes
    schema: str
    option_file: Path
    secrets: Sequence[str]
    said: Path
    marks: Sequence[Marks]
    precondition: str
    """A scalar that can't be computed where the schema is not ours any more; looked at behind the marks."""

    def run(self, chunks: Iterator[bytes]) -> None:
        """Execute *chunks*. Raises ``SnapshotConnectorError``, or what *chunks* raises."""
        # Only a client that has come to the end in good order, outside any statement or string, says this last word.
        token = secrets.token_hex(16)
        with self.said.open("wb") as said, self._start(said.fileno()) as tool:
            try:
                for chunk in without_sandbox(chunks):
                    _write(tool, chunk)
                _write(tool, f"\nDELIMITER ;\nSELECT '{token}';\n".encode())
                tool.stdin.close()
            except BrokenPipeError:
                tool.wait()
                raise self._failed(tool) from None
            if tool.wait() != 0:
                raise self._failed(tool)
        if token.encode() not in self.said.read_bytes()[-1024:]:
            raise self._failed(tool, "did not come to the end of the dump")

    def _start(self, stdout: int) -> Tool:
        command: list[str | Path] = [
            self.client.path,
            f"--defaults-file={self.option_file}",
            "--batch",
            "--skip-column-names",
            "--binary-mode",
            "--comments",
            "--skip-reconnect",
            "--local-infile=0",
            "--loose-sandbox",
            # The statement that failed holds somebody's rows; its line number says enough.
            "--loose-skip-print-query-on-error",
            "--default-character-set=utf8mb4",
            f"--max-allowed-packet={_MAX_PACKET}",
            f"--init-command={self._session()}",
            f"--database={self.schema}",
        ]
        return self.processes.start(command, stdin=subprocess.PIPE, stdout=stdout, secrets=self.secrets)

    def _session(self) -> str:
        limits = f"lock_wait_timeout = {_LOCK_WAIT}, wait_timeout = {LONGEST}"
        unlimited = ", max_statement_time = 0" if self.server.mariadb else ""
        marks = "".join(marks.assignment() for marks in self.marks)
        return f"SET SESSION {limits}{unlimited}{marks}, @django_snapshots_builds = {self.precondition}"

    def _failed(self, tool: Tool, how: str = "") -> SnapshotConnectorError:
        what = f"{tool.name} {how}; {tool.explain()}" if how else tool.explain()
        return SnapshotConnectorError(f"The load of {self.db_alias!r} failed: {what}.")


def _write(tool: Tool, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[tool.stdin.write(view) :]
