"""Several pytest processes share one test run: each test is run by just one of them.

Each process collects all tests and then takes file after file that nobody has taken yet, so that they end together
and no record of durations is needed. ``python -m tests.sharing`` starts them, each with servers of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO


class SharingError(Exception):
    """The processes of a run did not run every test just once."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one process did."""

    collected: list[str]
    """The names of all tests, in the order in which they are numbered."""
    ran: list[int]
    """The numbers of those that it ran."""


class Share:
    """The directory that the processes of one run have in common."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def claim(self, name: str) -> bool:
        """Take *name*; whether nobody had taken it before."""
        try:
            (self._directory / f"{name}.taken").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    @contextlib.contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """One test's turn: beside other processes' turns, or *alone*, when none of them is in its turn."""
        with self._open("door") as door, self._open("room") as room:
            # Who waits at the door for an empty room lets nobody in before.
            fcntl.lockf(door, fcntl.LOCK_EX)
            fcntl.lockf(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            if not alone:
                fcntl.lockf(door, fcntl.LOCK_UN)
            yield

    def _open(self, name: str) -> IO[bytes]:
        return (self._directory / f"{name}.lock").open("a+b")

    def write(self, name: str, report: Report) -> None:
        """Keep what the process *name* did."""
        (self._directory / f"{name}.json").write_text(json.dumps(asdict(report)))

    def reports(self) -> list[Report]:
        """What the processes have said so far."""
        return [Report(**json.loads(path.read_text())) for path in sorted(self._directory.glob("*.json"))]


def require_whole(reports: list[Report]) -> None:
    """Raise ``SharingError`` unless all processes collected the same tests and every one of them ran just once."""
    if not reports or any(report.collected != reports[0].collected for report in reports):
        raise SharingError("The processes did not collect the same tests in the same order.")
    times = Counter(number for report in reports for number in report.ran)
    wrong = [name for number, name in enumerate(reports[0].collected) if times[number] != 1]
    if wrong:
        raise SharingError(f"{len(wrong)} tests did not run just once: {', '.join(wrong[:10])}.")
