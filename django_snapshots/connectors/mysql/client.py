"""Finds the dump tool and the client that fit a server, and says what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from django_snapshots.connectors.mysql.server import Server
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Processes, find_program

_USUAL_PLACES = (
    "/usr/bin",
    "/usr/local/bin",
    "/usr/local/mysql/bin",
    "/usr/local/mariadb/bin",
    "/opt/homebrew/bin",
    "/opt/homebrew/opt/mariadb/bin",
    "/opt/homebrew/opt/mysql-client/bin",
)
_VERSION = re.compile(r"(?:from |Distrib |Ver )(?P<number>\d+\.\d+(?:\.\d+)?)(?P<mariadb>-MariaDB)?")
_OLDEST_MARIADB = (10, 3)
"""Older dump tools do not know sequences and leave them out."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """One outside program."""

    path: Path
    version: str
    number: tuple[int, ...]
    oracle: bool
    """Whether it is MySQL's own and not MariaDB's; some options differ."""


def find_dump_tool(server: Server, directory: str | None, processes: Processes) -> Client:
    """Return the dump tool for *server*, from *directory* only if one is named. Raises ``SnapshotConnectorError``."""
    return _find("dump tool", ("mariadb-dump", "mysqldump"), server, directory, processes)


def find_client(server: Server, directory: str | None, processes: Processes) -> Client:
    """Return the command line client for *server*, which a restore is loaded with."""
    return _find("client", ("mariadb", "mysql"), server, directory, processes)


def _find(what: str, names: Sequence[str], server: Server, directory: str | None, processes: Processes) -> Client:
    wanted = names if server.mariadb else tuple(reversed(names))
    found = [client for name in wanted if (client := _look_at(name, directory, processes))]
    if not found:
        # This machine's, and no dump's fault.
        raise SnapshotConnectorError(_missing(what, wanted, server, directory)) from FileNotFoundError(wanted[0])
    fitting = [client for client in found if client.oracle != server.mariadb]
    client = (fitting or found)[0]
    _require_new_enough(client, server)
    return client


def _look_at(name: str, directory: str | None, processes: Processes) -> Client | None:
    path = (
        find_program([name], [directory]) if directory else find_program([name]) or find_program([name], _USUAL_PLACES)
    )
    if path is None or (directory and path.parent != Path(directory)):
        return None
    with processes.start([path, "--no-defaults", "--version"]) as tool:
        said = b"".join(tool.chunks()).decode(errors="replace").strip()
        if tool.wait() != 0:
            raise SnapshotConnectorError(f"{path} does not say its version: {tool.explain()}")
    matches = list(_VERSION.finditer(said))
    if not matches:
        raise SnapshotConnectorError(f"{path} does not say its version; it says {said[:200]!r}.")
    # MariaDB's older programs name two numbers: their own, and behind it the distribution's with its name.
    match = next((item for item in matches if item["mariadb"]), matches[0])
    number = tuple(int(part) for part in match["number"].split("."))
    return Client(path=path, version=said, number=number, oracle=not match["mariadb"])


def _missing(what: str, names: Sequence[str], server: Server, directory: str | None) -> str:
    place = f"in {directory}" if directory else f"on PATH or in {', '.join(_USUAL_PLACES)}"
    packages = "mariadb-client" if server.mariadb else "mysql-client (MySQL's own, not MariaDB's)"
    return (
        f"The {what} for {server.title} is missing: there is no {' or '.join(names)} {place}. Install the package "
        f"{packages}, or name its directory with the connector's client_directory."
    )


def _require_new_enough(client: Client, server: Server) -> None:
    oldest = (server.number[0],) if client.oracle else _OLDEST_MARIADB
    if client.oracle != server.mariadb and client.number[: len(oldest)] < oldest:
        raise SnapshotConnectorError(
            f"{client.path} is too old for {server.title}: it says {client.version!r}, and "
            f"{'.'.join(map(str, oldest))} or newer is needed. Install a newer one, or name its directory with the "
            "connector's client_directory."
        )
