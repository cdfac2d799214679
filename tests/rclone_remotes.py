"""rclone's own S3-compatible server on a loopback port, for tests. It is not Amazon's."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django_snapshots.processes import Processes
from django_snapshots.storage.rclone_program import Rclone

BINARY = Rclone(environment={}, passwords={}).path
ACCESS_KEY, SECRET_KEY = "AKIDSNAPSHOTS", "s3cr3t-key-of-the-test-server"
_STARTED = re.compile(rb"Starting s3 server on \[(http://[^/]+)/\]")


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """One running server; its buckets are the directories of ``root``."""

    root: Path
    url: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """Defines the remote ``bucketstore``."""
        return {
            "RCLONE_CONFIG_BUCKETSTORE_TYPE": "s3",
            "RCLONE_CONFIG_BUCKETSTORE_PROVIDER": "Rclone",
            "RCLONE_CONFIG_BUCKETSTORE_ENDPOINT": self.url,
            "RCLONE_CONFIG_BUCKETSTORE_ACCESS_KEY_ID": ACCESS_KEY,
            "RCLONE_CONFIG_BUCKETSTORE_SECRET_ACCESS_KEY": SECRET_KEY,
        }


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """Serve ``directory/buckets``; the server ends with the context, and with the process that started it."""
    root, config, log = directory / "buckets", directory / "empty.conf", directory / "s3.log"
    root.mkdir()
    config.touch()
    with Processes() as processes, open(log, "wb") as output:
        tool = processes.start(
            [BINARY, "serve", "s3", "--addr", "127.0.0.1:0", "--log-file", log, root],
            env={"RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"', "RCLONE_CONFIG": str(config)},
            stdout=output,
        )
        while not (found := _STARTED.search(log.read_bytes())):
            assert tool.running(), f"{tool.explain()} {log.read_text()}"
            time.sleep(0.02)
        yield S3Server(root=root, url=found[1].decode(), pid=tool.pid)


def commands_of(marker: str) -> list[list[str]]:
    """The command line of every process that has *marker* in its own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(marker in argument for argument in command):
                found.append(command)
    return found


def rclone(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run the binary as a person would, and return what it printed."""
    done = subprocess.run(
        [BINARY, *arguments], env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
