"""Who would take a task that is sent now: the broker and the workers, asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from django_snapshots.conf import get_queue
from django_snapshots.redaction import redact

_TO_CONNECT = 3


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What the broker and the workers answered, and nothing else: a worker that is silent isn't in it."""

    broker: str
    """The broker's URL, without its password."""
    queue: str
    """The queue that was asked for: ``SNAPSHOTS["QUEUE"]``."""
    error: str = ""
    """Why nobody could be asked; empty if the broker answered."""
    workers: tuple[str, ...] = ()
    """The node names that answered, sorted, each once."""
    consuming: tuple[str, ...] = ()
    """Those of them that take tasks from the queue."""
    duplicated: tuple[str, ...] = ()
    """Those that more than one worker answered to."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, in sentences, each with what to do; empty if a task that is sent now would be taken."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.error:
            yield f"The broker {self.broker} can't be reached: {self.error}. Start it, or correct broker_url."
        elif not self.workers:
            yield (
                f"No worker answered. Start one: celery -A <project> worker -Q {self.queue}. (One that is started with "
                "worker_enable_remote_control off, or by the pools solo and gevent while it works, never answers.)"
            )
        elif not self.consuming:
            yield (
                f"No worker takes tasks from the queue {self.queue!r}; {', '.join(self.workers)} take others. "
                f'Start one with -Q {self.queue}, or correct SNAPSHOTS["QUEUE"].'
            )
        for name in self.duplicated:
            yield f"More than one worker is called {name}. Start each with a name of its own: -n snapshots-1@%h."


def worker_report(app: Celery, timeout: float = 2.0) -> WorkerReport:
    """Ask the workers of *app*; they have *timeout* seconds to answer.

    Raises nothing for a broker that is down, or that takes a connection and then says nothing: the report says so, some
    seconds after *timeout* at the latest.
    """
    asked: dict[str, Any] = {"broker": _broker(app), "queue": get_queue()}
    try:
        answers = _within(_TO_CONNECT + timeout + 1, lambda: _active_queues(app, timeout))
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        said = redact(str(error) or type(error).__name__).rstrip(".")
        return WorkerReport(**asked, error=said)
    counted = Counter(name for answer in answers for name in answer)
    return WorkerReport(
        **asked,
        workers=tuple(sorted(counted)),
        consuming=tuple(sorted({name for answer in answers for name in _consuming(answer, asked["queue"])})),
        duplicated=tuple(sorted(name for name, times in counted.items() if times > 1)),
    )


def _broker(app: Celery) -> str:
    try:
        return redact(str(app.connection_for_write().as_uri()))
    except Exception:  # noqa: BLE001 - a transport that isn't installed, or that nobody knows
        return redact(str(app.conf.broker_write_url or app.conf.broker_url))


def _active_queues(app: Celery, timeout: float) -> list[Mapping[str, Any]]:
    """One answer of each worker: its name, and what it consumes."""
    with app.connection_for_write(connect_timeout=_TO_CONNECT) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_TO_CONNECT)
        answers = app.control.broadcast("active_queues", reply=True, timeout=timeout, connection=connection)
    return list(answers or ())


def _consuming(answer: Mapping[str, Any], queue: str) -> Iterator[str]:
    for name, queues in answer.items():
        # A worker that is just starting answers with an error, or with nothing.
        if isinstance(queues, list) and any(item["name"] == queue for item in queues):
            yield name


def _within(seconds: float, ask: Callable[[], list[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """What *ask* returns or raises; ``TimeoutError`` if it takes longer, and then it is left behind.

    No time limit of the transports covers everything: a host that swallows packets, or a server that never answers.
    """
    answers: list[list[Mapping[str, Any]]] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="asks the workers")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:.0f} seconds")
    return answers[0]
