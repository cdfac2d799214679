"""The ``filesystem://`` broker: a directory instead of a server, for workers of one host.

It is good for a demo and for a small single host. A worker that is killed loses the messages that it had fetched.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_KEEP_SECONDS = 3600.0


def transport_options(directory: Path, *, polling_interval: float) -> dict[str, Any]:
    """Make the broker's folders below *directory*, private to this user; return ``CELERY_BROKER_TRANSPORT_OPTIONS``.

    *polling_interval*: how many seconds a worker waits before it looks again.
    """
    messages, control, processed = (directory / name for name in ("messages", "control", "processed"))
    for folder in (messages, control, processed):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        # A message is taken by a rename, which only one worker can win, and only within one file system.
        "store_processed": True,
        "processed_folder": str(processed),
        "polling_interval": polling_interval,
    }


def forget_processed(folder: str | Path) -> None:
    """Remove messages from *folder* that were delivered more than an hour ago; nobody reads them again."""
    limit = time.time() - _KEEP_SECONDS
    for path in Path(folder).glob("*.msg"):
        try:
            if path.stat().st_mtime < limit:
                path.unlink()
        except FileNotFoundError:
            continue  # another worker removed it
