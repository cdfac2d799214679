"""A process that holds a dump or a restore open in the middle: ``python -m tests.integration.session_holder``.

``dump LABEL`` or ``restore LABEL FILE [STRATEGY]``, of the alias ``default``. It says ``ready`` in the middle, goes on
after a line on standard input, and says at last how it ended.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path


def main(action: str, label: str, file: str = "", strategy: str = "") -> str:
    from django_snapshots.connectors.auto import connector_for
    from django_snapshots.connectors.file_tier import private_directory
    from django_snapshots.processes import Processes
    from django_snapshots.transfer import DumpRequest, RestoreRequest, Source

    connector = connector_for("default", _connectors(strategy))
    passes = 0

    def chunks() -> Iterator[bytes]:
        nonlocal passes
        passes += 1
        with Path(file).open("rb") as stream:
            yield stream.read(Path(file).stat().st_size // 2)
            if passes == 2:  # the first one only looks
                wait()
            yield stream.read()

    with Processes() as processes:
        if action == "dump":
            request = DumpRequest(processes=processes, label=label, temporary_directory=private_directory)
            with connector.open_dump("default", request) as dump:
                next(dump.chunks)
                wait()
                size = sum(len(chunk) for chunk in dump.chunks)
                return f"complete, {size} bytes, {dict(dump.metadata())}"
        source = Source(filename="default.dump", metadata={}, open=chunks)
        restore = RestoreRequest(processes=processes, label=label, temporary_directory=private_directory)
        prepared = connector.prepare("default", source, restore)
        try:
            prepared.check()
            prepared.switch()
        finally:
            prepared.discard()
        return "complete"


def _connectors(strategy: str) -> dict[str, object]:
    from django_snapshots.connectors.postgres import PostgresConnector

    return {"default": PostgresConnector(strategy=strategy)} if strategy else {}


def wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    import django

    from django_snapshots.exceptions import SnapshotError

    django.setup()
    try:
        print(main(*sys.argv[1:]))
    except SnapshotError as error:
        print(f"{type(error).__name__}: {error}")
