"""Makes a worker say which phases of a restore it reaches, and wait at the one that it is told to.

What it is told lies in a file, ``orders.json``; what it says goes into another, ``log``. The first that comes to the
phase ``pause`` makes the file ``paused`` with its process's number, and waits for the file ``go``.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from celery.signals import task_postrun
from django.apps import AppConfig

VARIABLE = "SNAPSHOTS_TEST_CONTROL"
_PATIENCE = 120.0
_POLL_SECONDS = 0.01
SWITCHES = {
    "django_snapshots.connectors.sqlite_switch": "sqlite",
    "django_snapshots.connectors.sqlite_ways": "sqlite",
    "django_snapshots.connectors.postgres.exchange": "postgres",
    "django_snapshots.connectors.mysql.exchange": "mariadb",
    "django_snapshots.artifacts.media_switch": "media",
    "django_snapshots.artifacts.media_kept": "media",
}


class Probe(AppConfig):
    """An app without models."""

    name = "tests.faults.restores"
    label = "probe"

    def ready(self) -> None:
        """Listen, if there is somebody who gives orders."""
        if directory := os.environ.get(VARIABLE):
            listen(Path(directory))


def listen(control: Path) -> None:
    """Have every phase told to *control*."""
    for module, engine in SWITCHES.items():
        owner = import_module(module)
        assert callable(owner._reached), module  # else a hook that was renamed would be missed in silence
        owner._reached = functools.partial(_reach, control, engine)
    from django_snapshots import switching
    from django_snapshots.connectors.postgres import session
    from django_snapshots.execution import restoring, settle

    reach = functools.partial(_reach, control, "restore")
    _around(restoring.Bookkeeping, "announce", reach, after="announced")
    _around(restoring.Bookkeeping, "switch", reach, after="no way back")
    _around(switching, "_prepare", reach, after="prepared")
    _around(switching, "_discard", reach, before="discarding")
    _around(restoring, "make_fit", reach, before="switched all", after="made fit")
    _around(settle.Settling, "settle", reach, before="settling")
    _around_commit(session.Session, reach)
    task_postrun.connect(functools.partial(_note, control, "task: ended"), weak=False)


def _around(
    owner: Any, name: str, reach: Callable[[str], None], *, before: str | None = None, after: str | None = None
) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def told(*arguments: Any, **keywords: Any) -> Any:
        if before:
            reach(before)
        answer = real(*arguments, **keywords)
        if after:
            reach(after)
        return answer

    setattr(owner, name, told)


def _around_commit(owner: Any, reach: Callable[[str], None]) -> None:
    """A restore in one transaction has one line that decides."""
    real = owner.ask

    @functools.wraps(real)
    def told(self: Any, statements: str, *arguments: Any, **keywords: Any) -> Any:
        if "COMMIT;" in statements:
            reach("before the commit")
        answer = real(self, statements, *arguments, **keywords)
        if "COMMIT;" in statements:
            reach("after the commit")
        return answer

    owner.ask = told


def _reach(control: Path, engine: str, phase: str) -> None:
    phase = f"{engine}: {phase}"
    _note(control, phase)
    if phase in _wanted(control) and _first(control, phase):
        _wait(control)


def _note(control: Path, phase: str, sender: Any = None, **_more: Any) -> None:
    if phase != "task: ended" or getattr(sender, "name", "") == "django_snapshots.step":
        with open(control / "log", "a") as log:
            log.write(f"{time.time():.3f} {os.getpid()} {phase}\n")


def _wanted(control: Path) -> list[str]:
    try:
        return list(json.loads((control / "orders.json").read_text())["pause"])
    except FileNotFoundError:
        return []


def _first(control: Path, phase: str) -> bool:
    """Whether nobody has waited there in this round, and nobody waits anywhere now."""
    try:
        with open(control / "paused", "x") as file:
            file.write(f"{os.getpid()} {phase}")
    except FileExistsError:
        return False
    return True


def _wait(control: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not (control / "go").exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
