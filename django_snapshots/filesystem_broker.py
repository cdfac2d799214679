"""The ``filesystem://`` broker: a directory instead of a server, for workers of one host.

It is good for a demo and for a small single host. A worker that is killed loses the messages that it had fetched.

It differs from kombu's own transport, which it builds on, in this:

- kombu's creates a file under its final name and fills it afterwards; a worker that looks in between takes an empty
  message and loses it. Here both messages and the tables of bindings appear complete or not at all.
- kombu's keeps whatever is sent to a process that has ended: a request to shut down ends the next worker of that name,
  and the events of all workers pile up for a monitor that is gone. Here a queue of a single process ends with the
  process, however that ends, as it does in RabbitMQ.
- kombu's names messages by a clock that begins anew with each boot. Here older messages come first after one, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

_KEEP_SECONDS = 3600.0
TRANSPORT = "django_snapshots.filesystem_broker:Transport"
"""``CELERY_BROKER_TRANSPORT``."""


class _Owned:
    """The queues that this process owns: each a lock on a file, which ends with the process."""

    def __init__(self) -> None:
        self._files: dict[Path, IO[str]] = {}
        self._mutex = threading.Lock()
        os.register_at_fork(after_in_child=self._leave_to_the_parent)

    def _leave_to_the_parent(self) -> None:
        # A copy of the open file would keep the lock while the child lives, also after its parent has ended.
        self._mutex = threading.Lock()
        for file in self._files.values():
            file.close()
        self._files = {}

    def own(self, path: Path, *, first: Callable[[], object]) -> bool:
        """Own *path* from now on; calls *first* if nobody did. Returns whether another process owns it too."""
        with self._mutex:
            if path in self._files:
                return False
            while True:
                file = path.open("a")
                alone = _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if alone:
                    first()
                _lock(file, fcntl.LOCK_SH)
                if _is_still(file, path):
                    self._files[path] = file
                    return not alone
                file.close()

    def leave(self, path: Path) -> None:
        """Own it no longer."""
        with self._mutex:
            if path in self._files:
                self._files.pop(path).close()

    @staticmethod
    def bury(path: Path, last_rites: Callable[[], object]) -> bool:
        """Whether *path* was owned once and no longer is; then calls *last_rites* and removes it."""
        try:
            file = path.open("r+")
        except FileNotFoundError:
            return False
        with file:
            if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
            last_rites()
            path.unlink(missing_ok=True)
            return True


def _is_still(file: IO[str], path: Path) -> bool:
    """Whether *file* is what *path* names: somebody may have removed it before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


_owned = _Owned()


class Channel(filesystem.Channel):
    """kombu's, with files that nobody can meet half-written, and queues that end with their process."""

    def queue_declare(self, queue: str | None = None, passive: bool = False, **options: Any) -> Any:
        """Declare a queue; one that is exclusive, or deleted with its last consumer, is this process's from now on."""
        declared = super().queue_declare(queue, passive, **options)
        if passive or not (options.get("exclusive") or options.get("auto_delete")):
            return declared
        name = declared.queue
        shared = _owned.own(self._owner(name), first=lambda: self._purge(name))
        # By the number of consumers a worker tells that there is another one of its name, and warns.
        return declared._replace(message_count=self._size(name), consumer_count=int(shared))

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **options: Any) -> None:
        """Delete a queue and its bindings."""
        if if_empty and self._size(queue):
            return
        super().queue_delete(queue, if_unused, **options)
        _owned.leave(self._owner(queue))
        self._bury(queue)

    def get_table(self, exchange: str) -> list[Any]:
        """The bindings of *exchange*, without those of processes that have ended; these are forgotten."""
        return [binding for binding in super().get_table(exchange) if not self._bury(binding.queue)]

    def _owner(self, queue: str) -> Path:
        folder: Path = self.control_folder
        return folder / f"{queue}.owner"

    def _bury(self, queue: str) -> bool:
        return _owned.bury(self._owner(queue), lambda: self._forget(queue))

    def _forget(self, queue: str) -> None:
        """Remove the messages of *queue*, and its bindings to any exchange."""
        self._purge(queue)
        folder: Path = self.control_folder
        for table in folder.glob("*.exchange"):
            with table.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                bindings = json.load(file)
                kept = [binding for binding in bindings if binding[2] != queue]
                if kept != bindings:
                    file.seek(0)
                    file.write(dumps(kept))
                    file.truncate()

    def _put(self, queue: str, payload: dict[str, Any], **_options: Any) -> None:  # type: ignore[override]
        name = f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
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

    def establish_connection(self) -> Any:
        """Connect, and throw away what nobody reads again."""
        options: dict[str, Any] = self.client.transport_options  # type: ignore[union-attr, assignment]
        folder = options.get("processed_folder")
        if folder:
            forget_processed(folder)
        return super().establish_connection()


@contextlib.contextmanager
def _complete_file(folder: Path, content: str) -> Iterator[Path]:
    """A file with *content* in *folder*, under a hidden name that is gone afterwards."""
    path = folder / f".{uuid.uuid4()}"
    try:
        path.write_text(content)
        yield path
    finally:
        path.unlink(missing_ok=True)


def transport_options(directory: Path, *, polling_interval: float = 1.0) -> dict[str, Any]:
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
