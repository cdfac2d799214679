"""A restore of single tables that kills itself in its switch.

``python -m tests.integration.mysql_row_switcher PHASE MARK FILE TABLE ...``
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(phase: str, mark: str, file: str, *tables: str) -> None:
    from django_snapshots.connectors.mysql import MySQLConnector, row_exchange
    from tests.integration.mysql_support import preparing, source

    def reached(here: str) -> None:
        if here == phase:
            os.kill(os.getpid(), signal.SIGKILL)

    row_exchange._reached = reached
    content = source(Path(file).read_bytes())
    with preparing("default", content, MySQLConnector(), mark=mark, tables=frozenset(tables)) as prepared:
        prepared.check()
        prepared.switch()


if __name__ == "__main__":
    import django

    django.setup()
    main(*sys.argv[1:])
