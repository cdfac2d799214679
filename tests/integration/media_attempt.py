"""One attempt at a restore of media files in a process of its own, which dies or sleeps where it is told."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.forked import Forked


@contextlib.contextmanager
def attempt(root: Path, action: str, what: str | Path, mark: str, phase: str, sent: int, way: str) -> Iterator[Forked]:
    """A child that sends itself *sent* when it reaches *phase*; ``moved#3`` is the third time that it gets there."""
    arguments = (str(root), action, str(what), mark, phase, str(int(sent)), way)
    with Forked("tests.integration.media_attempt", *arguments) as child:
        yield child


def go(way: str) -> None:
    """Take *way* to the root: ``exchange``, ``renames`` or ``moves``."""
    from django_snapshots.artifacts import media_switch

    def no_exchange(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    if way == "renames":
        media_switch.exchange = no_exchange
    if way == "moves":
        media_switch.Staging._make_beside = lambda self: None  # type: ignore[method-assign]


def load() -> None:
    """What takes time and needs no settings."""
    import django  # noqa: F401

    from django_snapshots.artifacts import media  # noqa: F401


def main(root: str, action: str, what: str, mark: str, phase: str, sent: str, way: str) -> None:
    import django
    from django.conf import settings

    settings.configure(MEDIA_ROOT=root, USE_TZ=True)
    django.setup()
    from django_snapshots.artifacts import media_kept, media_switch
    from django_snapshots.artifacts.media import MediaArtifact
    from django_snapshots.exceptions import SnapshotError
    from django_snapshots.processes import Processes
    from django_snapshots.temporary import private_directory
    from django_snapshots.transfer import RestoreRequest, Source

    go(way)
    wanted, _, time = phase.partition("#")
    met: list[str] = []

    def reached(name: str) -> None:
        met.append(name)
        if name == wanted and met.count(name) == int(time or 1):
            os.kill(os.getpid(), int(sent))

    media_switch._reached = media_kept._reached = reached
    kind = MediaArtifact()
    try:
        if action == "settle":
            print(kind.settle("media", mark, {}), flush=True)
            return
        with Processes() as processes:
            request = RestoreRequest(
                processes=processes, mark=mark, about={"run": mark}, temporary_directory=private_directory
            )
            if action == "restore":
                chunks = [Path(what).read_bytes()]
                prepared = kind.prepare(
                    "media", Source(filename="media.tar", metadata={}, open=lambda: iter(chunks)), request
                )
            else:
                prepared = kind.bring_back("media", what, request)
            try:
                reached("prepared")
                prepared.check()
                prepared.switch()
                reached("before discard")
                if wanted == "before rolling back":
                    reached(wanted)
                    prepared.roll_back()
                if wanted == "rolled back":
                    prepared.roll_back()
                    reached(wanted)
            finally:
                prepared.discard()
        print("done", flush=True)
    except SnapshotError as error:
        print(type(error).__name__, error, flush=True)
