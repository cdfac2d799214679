"""Follows a page as a newcomer does: types its blocks word for word, and writes the files that it names."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.integration.pages import Block, blocks
from tests.projects import ROOT, wait_until

_PLACE = re.compile(r"(at the end of|into) `([^`]+)`:$")
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR")


def clean_environment(*directories: Path) -> dict[str, str]:
    """What a new terminal has: nothing of this process's virtual environment, and nothing of the repository.

    *directories* come first in ``PATH``. pip installs the versions that ``constraints.txt`` names.
    """
    ours = str(Path(sys.executable).parent)
    path = [entry for entry in os.environ["PATH"].split(os.pathsep) if entry != ours]
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        **pip,
        "PATH": os.pathsep.join([*map(str, directories), *path]),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass(kw_only=True)
class Terminal:
    """A directory, an environment, and what was started in them and goes on."""

    directory: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            self.press_control_c(process)

    def type(self, lines: str, stdin: str = "") -> str:
        """Run *lines*, which must succeed; where they ``cd`` to and what they export stays. Return what was printed."""
        keep = self.directory.parent / ".terminal"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'{lines}\n{{ pwd; env -0; }} > "$KEEP"'],
            cwd=self.directory,
            env={**self.environment, "KEEP": str(keep)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        directory, _, environment = keep.read_text().partition("\n")
        self.directory = Path(directory)
        self.environment = dict(entry.split("=", 1) for entry in environment.split("\0") if "=" in entry)
        return done.stdout

    def leave_running(self, line: str) -> subprocess.Popen[bytes]:
        """Start *line* in a terminal of its own, which ends with this one."""
        log = self.directory / f"terminal-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def logs(self) -> str:
        """What everything that was left running has printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("terminal-*.log")))

    def press_control_c(self, process: subprocess.Popen[bytes]) -> None:
        """End a process as a person does, and for good if it doesn't listen."""
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)

    def write(self, block: Block) -> None:
        """Put a block where the sentence before it says: at the end of a file, or into a new one."""
        found = _PLACE.search(block.before)
        assert found, f"{block}: the line before it does not say where it goes: {block.before!r}"
        where, name = found.groups()
        with (self.directory / name).open("a" if where == "at the end of" else "w") as file:
            file.write(f"\n{block.text}\n")

    def wait_for(self, words: str, what: str) -> None:
        """Wait until something that was left running has printed *words*."""
        wait_until(lambda: words in self.logs() or self._ended(), what)
        assert words in self.logs(), self.logs()

    def _ended(self) -> bool:
        return any(process.poll() is not None for process in self.processes)


def of_section(page: str, heading: str) -> list[Block]:
    """The blocks below *heading*, in order."""
    found = [block for block in blocks(page=page) if block.heading == heading]
    assert found, f"{page} has no blocks below {heading!r}"
    return found
