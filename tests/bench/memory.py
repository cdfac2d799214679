"""The peak of the memory that a process and all its descendants hold together."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

INTERVAL = 0.05


class PeakMemory:
    """Samples the sum of PSS of *pid* and its descendants every 50 ms; ``peak`` is in bytes.

    PSS (proc(5), smaps_rollup) shares what several processes map between them, so a sum counts each page once.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.peak = max(self.peak, total_pss(self._pid))


def total_pss(pid: int) -> int:
    """Bytes of PSS of *pid* and its descendants now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return sum(_pss(process.pid) for process in (root, *root.children(recursive=True)))
    return 0


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
