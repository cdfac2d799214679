"""How the demo speaks: numbered steps with the time since its start."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

_WIDTH = 110


class Teller:
    """Prints the story, each line at once."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._number = 0

    def title(self, text: str) -> None:
        """What this is about."""
        print(f"\n{text}\n", flush=True)

    def step(self, text: str) -> None:
        """One numbered step, told when it is done."""
        self._number += 1
        elapsed = time.monotonic() - self._begun
        print(_wrapped(f"{self._number:>2}. ", f"[{elapsed:4.1f} s] {text}"), flush=True)

    def detail(self, text: str) -> None:
        """A line that belongs to the step before."""
        print(f"      {text}", flush=True)

    def proof(self, text: str) -> None:
        """What it was all for."""
        print(f"\n{_wrapped('', text)}", flush=True)

    def plain(self, text: str) -> None:
        """Anything else."""
        print(_wrapped("", text) if not text.startswith("\n") else text, flush=True)


def size(count: int) -> str:
    """*count* bytes for people."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def listed(items: Sequence[str], most: int = 10) -> str:
    """*items* in a sentence."""
    shown = [*items[:most], *([f"{len(items) - most} more"] if len(items) > most else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def command(words: str) -> str:
    """A command line that runs a management command in the demo's project."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    prefix = f"DEMO_DIRECTORY={shlex.quote(os.environ['DEMO_DIRECTORY'])} " if os.environ.get("DEMO_DIRECTORY") else ""
    return f"{prefix}{shlex.quote(str(python))} -m tasks.demo {words}"


def _wrapped(first: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * (len(first) and len(first) + 9),
        break_long_words=False,
        break_on_hyphens=False,
    )
