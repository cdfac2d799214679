"""SIGTERM and SIGHUP as an exception, so that a command that is told to end brings its run to an end first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)


class ToldToEnd(BaseException):
    """The process was sent a signal that asks it to end; like ``KeyboardInterrupt``, nothing that handles errors
    catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    def exit_code(self) -> int:
        """What a shell reports of a process that this signal has ended."""
        return 128 + self.number


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While the block runs, the first of these signals raises ``ToldToEnd`` in it; those that follow change nothing.

    A signal that somebody ignores (``nohup``) or handles is left to them; so is everything outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _NUMBERS if signal.getsignal(number) == signal.SIG_DFL]

    def hear(number: int, _frame: FrameType | None) -> None:
        for each in ours:
            # Not SIG_IGN: a program that is started from now on would inherit it.
            signal.signal(each, lambda _number, _frame: None)
        raise ToldToEnd(number)

    try:
        for number in ours:
            signal.signal(number, hear)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
