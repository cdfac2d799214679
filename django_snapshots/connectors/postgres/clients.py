"""Finds PostgreSQL's own programs in a version that fits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Processes

_USUAL_PLACES = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # Red Hat and its kin
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")
# Path, time of change and size of a program -> what it says of itself; asking costs a process.
_known_versions: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True, kw_only=True)
class Clients:
    """PostgreSQL's programs of one version, in one directory."""

    directory: Path
    version: str
    """For example ``15.18``."""
    major: int

    def program(self, name: str) -> Path:
        """The absolute path of *name*: ``pg_dump``, ``pg_restore`` or ``psql``."""
        return self.directory / name


def major_of(version: str) -> int:
    """``15`` of ``15.18 (Debian 15.18-0+deb12u1)`` or ``15beta1``; ``0`` of what has no number."""
    match = re.match(r"\d+", version)
    return int(match.group()) if match else 0


def choose(
    processes: Processes, client_directory: str | None, programs: Sequence[str], *, at_least: int, because: str
) -> Clients:
    """The oldest programs that are not older than major version *at_least*.

    Oldest, because newer ones write what an older server doesn't understand. A *client_directory* is searched alone;
    without one, ``PATH`` and then the usual places. *because* says where the bound comes from, for the message.
    """
    found = list(_search(processes, client_directory, programs))
    fitting = [clients for clients in found if clients.major >= at_least]
    if fitting:
        return min(fitting, key=lambda clients: clients.major)
    raise SnapshotConnectorError(
        f"{because}, so it needs {' and '.join(programs)} of version {at_least} or newer; "
        f"{_what_was_found(found, client_directory)} Install the PostgreSQL client programs of version {at_least} "
        f"(on Debian: postgresql-client-{at_least}) or name their directory: PostgresConnector(client_directory=...)."
    ) from FileNotFoundError(f"no {programs[0]} of version {at_least}")  # this machine's, and no dump's fault


def _what_was_found(found: Sequence[Clients], client_directory: str | None) -> str:
    place = client_directory or "PATH and the usual places"
    if not found:
        return f"there is none in {place}."
    return f"{place} has only " + ", ".join(f"{item.version} in {item.directory}" for item in found) + "."


def _search(processes: Processes, client_directory: str | None, programs: Sequence[str]) -> Iterator[Clients]:
    directories = [Path(client_directory).absolute()] if client_directory else [*_on_path(), *_in_usual_places()]
    for directory in dict.fromkeys(directories):
        paths = [directory / name for name in programs]
        if not all(os.access(path, os.X_OK) and path.is_file() for path in paths):
            continue
        # Debian's wrapper picks a version by rules of its own; what it picks from is among the usual places.
        if not client_directory and paths[0].resolve().name == "pg_wrapper":
            continue
        version = _version(processes, paths[0])
        if version:
            yield Clients(directory=directory, version=version, major=major_of(version))


def _on_path() -> Iterator[Path]:
    for entry in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if entry:
            yield Path(entry).absolute()


def _in_usual_places() -> Iterable[Path]:
    root = Path("/")
    return [path for pattern in _USUAL_PLACES for path in sorted(root.glob(pattern.lstrip("/")))]


def _version(processes: Processes, program: Path) -> str:
    """What the program says of itself, or nothing if it doesn't run."""
    status = program.stat()
    key = (str(program), status.st_mtime_ns, status.st_size)
    if key not in _known_versions:
        with processes.start([program.absolute(), "--version"]) as tool:
            said = b"".join(tool.chunks()).decode(errors="replace")
            match = _VERSION.search(said) if tool.wait() == 0 else None
        _known_versions[key] = match.group(1) if match else ""
    return _known_versions[key]
