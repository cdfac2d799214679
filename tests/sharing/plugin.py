"""The pytest plugin of a shared run: ``pytest -p tests.sharing.plugin --share DIRECTORY``."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from itertools import chain, groupby, pairwise
from pathlib import Path

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
        taken = chain(self._taken(session.items), [None])
        # The test after this one decides which fixtures end, so a file is taken before the last test of another one.
        for item, following in pairwise(taken):
            assert item is not None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
        self._share.write(str(os.getpid()), Report(collected=_names(session.items), ran=self._ran))
        return True

    def _taken(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        """The tests of one file after another; pytest-django puts some files' tests in two places."""
        for place, (_path, numbered) in enumerate(groupby(enumerate(items), key=lambda pair: pair[1].path)):
            if self._share.claim(str(place)):
                for number, item in numbered:
                    self._ran.append(number)
                    yield item

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let a test marked ``alone`` wait for the other processes' tests, before its time-out begins to count."""
        with self._share.turn(alone=item.get_closest_marker("alone") is not None):
            return (yield)


def _names(items: list[pytest.Item]) -> list[str]:
    """The tests' names without their parameters, which may hold an address."""
    return [item.nodeid.partition("[")[0] for item in items]
