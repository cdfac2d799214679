"""Makes a process die by SIGKILL where a test wants it to: before or after a function, by the variable ``DIES_AT``.

``django_snapshots.drill.journey:Drill._look:before`` names module, function and side.
"""

from __future__ import annotations

import functools
import os
import signal
from importlib import import_module
from typing import Any

from django.apps import AppConfig

VARIABLE = "DIES_AT"


class Dying(AppConfig):
    """An app without models."""

    name = "tests.integration"
    label = "dying"

    def ready(self) -> None:
        """Wait there, if somebody says so."""
        if wanted := os.environ.get(VARIABLE):
            arrange(wanted)


def arrange(where: str) -> None:
    """Let this process die at *where*."""
    module, function, side = where.split(":")
    owner: Any = import_module(module)
    *path, name = function.split(".")
    for step in path:
        owner = getattr(owner, step)
    real = getattr(owner, name)

    @functools.wraps(real)
    def dies(*arguments: Any, **keywords: Any) -> Any:
        if side == "after":
            real(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dies)
