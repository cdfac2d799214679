"""The pytest plugin of a shared run: ``pytest -p tests.sharing.plugin --share=DIRECTORY``."""

from __future__ import annotations

import os
from collections.abc import Generator
from itertools import groupby
from pathlib import Path
from typing import cast

import pytest

from tests.sharing import Report, Share


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, required=True, help="the directory that this run's processes have in common")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Shared(Share(config.option.share)))


class _Shared:
    def __init__(self, share: Share) -> None:
        self._share = share
        self._ran: list[int] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """pytest's own loop, over the tests that this process takes."""
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest's own says what is to be said
        files = groupby(enumerate(session.items), key=lambda pair: pair[1].path)
        # pytest-django puts the tests of some files in two places; each is taken by itself.
        for place, (_path, numbered) in enumerate(files):
            if self._share.claim(str(place)):
                self._run(session, dict(numbered))
        self._share.write(str(os.getpid()), Report(collected=_names(session.items), ran=self._ran))
        return True

    def _run(self, session: pytest.Session, items: dict[int, pytest.Item]) -> None:
        # What comes after the last of them isn't known yet: whatever it is, it is a part of the session, so that its
        # fixtures stay and all others end.
        following = [*list(items.values())[1:], cast("pytest.Item", session)]
        for (number, item), next_item in zip(items.items(), following, strict=True):
            self._ran.append(number)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let a test marked ``alone`` wait for the other processes' tests, before its time-out begins to count."""
        with self._share.turn(alone=item.get_closest_marker("alone") is not None):
            return (yield)


def _names(items: list[pytest.Item]) -> list[str]:
    """The tests' names without their parameters, which may hold an address."""
    return [item.nodeid.partition("[")[0] for item in items]
