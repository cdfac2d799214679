"""What the two harnesses have in common: the directory of a session, its end however it comes, and what it leaves.

One rule: a session ends with everything that it has started, and with its directory, whether its rounds are over, one
of them crashed, it could not be brought up, or somebody ends it by SIGINT or SIGTERM. After a crash its logs are kept.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from tests.projects import WorkerProcess
from tests.services.servers import Service


class Session(Protocol):
    """What a harness brings up and closes."""

    def bring_up(self) -> None:
        """Start all of it."""

    def close(self) -> None:
        """End what was started, also if not all of it was; any number of times."""


Kind = TypeVar("Kind", bound=Session)


@contextlib.contextmanager
def session(make: Callable[[Path], Kind], report: Path) -> Iterator[Kind]:
    """The session that *make* makes of a directory, brought up; its logs are kept beside *report* if it crashes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # its workers are no children that end with it
        signal.signal(number, lambda *_: sys.exit(1))
    directory = Path(tempfile.mkdtemp(prefix="snapshots-", dir="/tmp"))
    directory.chmod(0o755)
    with contextlib.ExitStack() as end:
        end.callback(shutil.rmtree, directory, ignore_errors=True)
        try:
            made = make(directory)
            end.callback(made.close)
            made.bring_up()
            yield made
        except BaseException:
            keep_logs(directory, report, "crash")
            raise


def end_all(workers: Iterable[WorkerProcess], services: Iterable[Service | None]) -> None:
    """End every one of them, also when one can't be; workers first."""
    with contextlib.ExitStack() as stack:
        for service in services:
            if service is not None:
                stack.callback(service.stop)
        for worker in workers:
            stack.callback(worker.teardown)


def keep_logs(directory: Path, report: Path, name: str) -> None:
    """What the workers, the servers, the storage and the probe said, beside the report."""
    kept = report.with_suffix(f".{name}")
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in (*(directory / "project").glob("*.log"), *(directory / "control").glob("*")):
        shutil.copy(path, kept)
    for path in directory.glob("*/log"):
        shutil.copy(path, kept / f"{path.parent.name}.server.log")
