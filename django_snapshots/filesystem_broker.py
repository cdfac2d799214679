"""The ``filesystem://`` broker: a directory instead of a server, for workers of one host.

It is good for a demo and for a small single host. A worker that is killed loses the messages that it had fetched.

kombu's own transport creates a file under its final name and fills it afterwards; a worker that looks in between takes
an empty message and loses it. Here both messages and the tables of bindings appear complete or not at all.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

_KEEP_SECONDS = 3600.0
TRANSPORT = "django_snapshots.filesystem_broker:Transport"
"""``CELERY_BROKER_TRANSPORT``."""


class Channel(filesystem.Channel):
    """kombu's, with files that nobody can meet half-written."""

    def _put(self, queue: str, payload: dict[str, Any], **_options: Any) -> None:  # type: ignore[override]
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        with _complete_file(Path(self.data_folder_out), dumps(payload)) as written:
            written.rename(written.with_name(name))

    def _queue_bind(self, exchange: str, *binding: Any) -> None:
        table: Path = self._exchange_file(exchange)  # type: ignore[attr-defined]
        if not table.exists():
            with _complete_file(table.parent, "[]") as written, contextlib.suppress(FileExistsError):
                os.link(written, table)
        super()._queue_bind(exchange, *binding)


class Transport(filesystem.Transport):
    """kombu's, with the channel above."""

    Channel = Channel


@contextlib.contextmanager
def _complete_file(folder: Path, content: str) -> Iterator[Path]:
    """A file with *content* in *folder*, under a hidden name that is gone afterwards."""
    path = folder / f".{uuid.uuid4()}"
    try:
        path.write_text(content)
        yield path
    finally:
        path.unlink(missing_ok=True)


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
