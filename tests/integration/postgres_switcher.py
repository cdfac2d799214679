"""A process that restores the alias ``default`` and is stopped at one line of the switch.

``python -m tests.integration.postgres_switcher MARK LABEL FILE PHASE [UNDO_OF]``. It says ``ready`` when it has reached
the phase, and goes on after a line on standard input, if nobody has killed it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(mark: str, label: str, file: str, phase: str, undo_of: str = "") -> None:
    from django_snapshots.connectors.file_tier import private_directory
    from django_snapshots.connectors.postgres import PostgresConnector, exchange
    from django_snapshots.processes import Processes
    from django_snapshots.transfer import RestoreRequest, Source
    from tests.integration.postgres_helpers import read

    def reached(now: str) -> None:
        if now == phase:
            print("ready", flush=True)
            sys.stdin.readline()

    exchange._reached = reached
    connector = PostgresConnector(strategy="new-database", jobs=1)
    with Processes() as processes:
        request = RestoreRequest(
            processes=processes,
            label=label,
            mark=mark,
            preserve_tables=frozenset({"django_snapshots_run"}),
            temporary_directory=private_directory,
        )
        source = Source(filename="default.pgdump", metadata={}, open=lambda: read(Path(file)))
        prepared: Any = (
            connector.bring_back("default", undo_of, request)
            if undo_of
            else connector.prepare("default", source, request)
        )
        prepared.check()
        reached("prepared")
        prepared.switch()
        reached("switched")


if __name__ == "__main__":
    import django

    from django_snapshots.exceptions import SnapshotError

    django.setup()
    try:
        main(*sys.argv[1:])
        print("complete")
    except SnapshotError as error:
        print(f"{type(error).__name__}: {error}")
