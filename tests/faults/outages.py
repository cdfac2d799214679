"""Journals that can be away: a forwarder before a server, a lock on a file; and artifact kinds that do harm."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django_snapshots.storage.local import LocalFileSystemBackend
from django_snapshots.transfer import Dump

_BACKLOG = 16


class Forwarder:
    """A port of this machine that passes everything on to another one, until it is cut or frozen."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        if self._listener.fileno() < 0:
            return
        # A shutdown wakes the threads that wait for these sockets; a close would not.
        for end in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in [self._listener, *self._open]:
            end.close()
        self._open.clear()
        self._threads.clear()

    def freeze(self) -> None:
        """Pass nothing on, and end nothing: a network that loses every packet."""
        self._flows.clear()

    def mend(self) -> None:
        """As it was at the beginning."""
        self._flows.set()
        if self._listener.fileno() < 0:
            self._listener = self._listen(self.port)

    def close(self) -> None:
        self._flows.set()
        self.cut()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self._start(self._accept, listener)
        return listener

    def _start(self, move: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=move, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    self._start(self._pass_on, source, sink)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class LockedFile:
    """The same for a journal in a file: another writer has it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: sqlite3.Connection | None = None

    def cut(self) -> None:
        self._writer = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        self._writer.execute("BEGIN EXCLUSIVE")

    freeze = cut

    def mend(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    close = mend


class Kind:
    """A kind of artifact of one subject, whose content a test decides."""

    type = "thing"
    compress = False

    def subjects(self) -> list[str]:
        return [self.type]

    @contextlib.contextmanager
    def open_dump(self, subject: str, request: Any) -> Iterator[Dump]:
        yield Dump(suffix="bin", started_at=datetime.now(UTC), chunks=self.chunks(request), metadata=dict)

    def chunks(self, request: Any) -> Iterator[bytes]:
        yield b"whole"

    def target(self, subject: str) -> Any:
        raise NotImplementedError

    def prepare(self, subject: str, source: Any, request: Any) -> Any:
        raise NotImplementedError


class Killing(Kind):
    """Kills the process that dumps it, as the kernel does when there is no memory left."""

    def chunks(self, request: Any) -> Iterator[bytes]:
        yield b"a part"
        os.kill(os.getpid(), signal.SIGKILL)


class HangingStorage(LocalFileSystemBackend):
    """Hangs in the middle of every artifact, as a network file system does whose server is gone."""

    def stream_write(self, path: str, chunks: Iterator[bytes]) -> None:
        if path.endswith((".bin", ".bin.zst")):
            next(chunks)
            pipe = Path(self.location) / "nobody-writes-here"
            os.mkfifo(pipe)
            pipe.read_bytes()
        super().stream_write(path, chunks)
