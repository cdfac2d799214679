"""A restore that kills itself in its switch: ``python -m tests.integration.mysql_switcher PHASE MARK FILE``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(phase: str, mark: str, file: str) -> None:
    from django_snapshots.connectors.mysql import MySQLConnector, exchange
    from tests.integration.mysql_support import preparing, source

    def reached(here: str) -> None:
        if here == phase:
            os.kill(os.getpid(), signal.SIGKILL)

    exchange._reached = reached
    with preparing("default", source(Path(file).read_bytes()), MySQLConnector(), mark=mark) as prepared:
        prepared.check()
        prepared.switch()


if __name__ == "__main__":
    import django

    django.setup()
    main(*sys.argv[1:])
