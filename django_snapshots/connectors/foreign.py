"""Calls the two methods of somebody else's class, a connector's or an artifact kind's, and believes nothing.

What it raises is told without its context: the exception of a failed program carries the whole command, often with a
password in it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from django_snapshots.exceptions import SnapshotCancelled, SnapshotError
from django_snapshots.redaction import redact
from django_snapshots.transfer import CHUNK_SIZE, Source

DEFAULT_SUFFIX = "dump"
_SUFFIX = re.compile(r"[A-Za-z0-9]{1,16}")
_SAID_AT_MOST = 4000

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Whose code it is and what it works on, for messages."""

    who: str
    """Such as ``the connector of 'legacy'``."""
    subject: str
    thing: str
    """What it dumps, such as ``the database``."""
    error: type[SnapshotError]

    def call(self, what: str, function: Callable[[], Result]) -> Result:
        """*function*; every error becomes one of ours, without secrets and without what led to it."""
        failure: SnapshotError
        try:
            return function()
        except SnapshotCancelled as error:
            failure = SnapshotCancelled(redact(str(error)))
        except SnapshotError as error:
            failure = self.error(redact(str(error)))
        except subprocess.CalledProcessError as error:
            failure = self.error(f"The {what} of {self.subject!r} failed: {_program_failure(error)}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            said = redact(str(error))[:_SAID_AT_MOST]
            failure = self.error(f"The {what} of {self.subject!r} failed with {type(error).__name__}: {said}")
        # Raised out here, where no exception is being handled, it carries no context.
        raise failure

    def metadata(self, returned: object) -> dict[str, Any]:
        """What its ``dump`` returned, as it will be read back from the manifest."""
        if not isinstance(returned, dict):
            raise self.error(
                f"{self._begin()} must return a dict of metadata from dump, not {type(returned).__name__}."
            )
        try:
            content: dict[str, Any] = json.loads(json.dumps(returned, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise self.error(
                f"The metadata that {self.who} returned from dump can't be written as JSON: {error}."
            ) from None
        return content

    def identity(self, function: Callable[[], object]) -> str:
        """What its ``identity`` returned, which must be text."""
        returned = self.call("identity", function)
        if not isinstance(returned, str):
            raise self.error(f"{self._begin()} must return a str from identity, not {type(returned).__name__}.")
        return returned

    def number(self, what: str, function: Callable[[], object]) -> int:
        """What its method *what* returned, which must be a whole number."""
        returned = self.call(what, function)
        if not isinstance(returned, int):
            raise self.error(f"{self._begin()} must return an int from {what}, not {type(returned).__name__}.")
        return returned

    def require_content(self, path: Path) -> None:
        """Raise unless its ``dump`` wrote something to *path*."""
        if not path.is_file() or path.stat().st_size == 0:
            what = "an empty file" if path.is_file() else "no file"
            raise self.error(f"{self._begin()} said that it dumped {self.thing}, but wrote {what}; nothing was stored.")

    def spool(self, source: Source, path: Path) -> None:
        """Write the whole *source*, proved, to *path*."""
        with path.open("xb") as file:
            for chunk in source.open():
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise self.error(
                        f"The dump of {self.subject!r} could not be written to {path.parent}: {error.strerror}. "
                        "Nothing was changed."
                    ) from error

    def _begin(self) -> str:
        return f"{self.who[0].upper()}{self.who[1:]}"


def suffix(metadata: Mapping[str, Any]) -> str:
    """How the file's name ends: what the metadata call its format, if that can be part of a name."""
    wanted = metadata.get("format")
    return wanted if isinstance(wanted, str) and _SUFFIX.fullmatch(wanted) else DEFAULT_SUFFIX


def read(path: Path) -> Iterator[bytes]:
    """The file in chunks."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk


def _program_failure(error: subprocess.CalledProcessError) -> str:
    program = error.cmd if isinstance(error.cmd, str) else str(error.cmd[0])
    words = error.stderr or error.output or b""
    text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
    said = redact(text.strip())[-_SAID_AT_MOST:]
    return f"{Path(program.split()[0]).name} exited with status {error.returncode}: {said or 'it said nothing'}"
