"""A client of the restored database that keeps inserting rows and remembers what was committed."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.restores.worlds import World

_PAUSE = 0.01
_AFTER_AN_ERROR = 0.05
_ENDS_WITHIN = 60.0
_NUMBERS = itertools.count(1)


class Client:
    """Inserts in a thread of its own, each row in a transaction of its own; connects again after every error."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.committed: set[int] = set()
        """The rows whose commit the database has confirmed."""
        self.tried: set[int] = set()
        self.errors = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Insert nothing more."""
        self._stop.set()
        self._thread.join(_ENDS_WITHIN)
        assert not self._thread.is_alive(), "the client's statement does not end"

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(Exception):
                self._insert()
            self.errors += 1
            self._stop.wait(_AFTER_AN_ERROR)

    def _insert(self) -> None:
        with self._world.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            while not self._stop.is_set():
                number = next(_NUMBERS)
                self.tried.add(number)
                cursor.execute(f"INSERT INTO client_rows (id) VALUES ({number})")
                self.committed.add(number)
                time.sleep(_PAUSE)
