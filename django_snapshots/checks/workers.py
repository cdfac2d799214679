"""Checks of the project's own Celery settings: what would hurt the tasks of this package, and only these.

They can be told where the project's Celery app is loaded with Django, as Celery's documentation has it. What is given
to a worker on its command line can't be seen. What holds for our tasks whatever the settings say isn't checked: they
are JSON, acknowledged early, and keep or ignore their results as they need it (``docs/reference/checks.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import Celery
from celery.app import app_or_default
from celery.utils.imports import load_extension_class_names, symbol_by_name
from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django calls it so
from kombu.serialization import prepare_accept_content

from django_snapshots.conf import get_queue, get_schedules
from django_snapshots.exceptions import SnapshotError
from django_snapshots.filesystem_broker import TRANSPORT

STEP = "django_snapshots.step"
"""The task that takes hours; all others take moments."""
_LONG = 24 * 3600
_JSON, _PICKLE = "application/json", "application/x-python-serialize"
_DEFAULT_SCHEDULER = "celery.beat:PersistentScheduler"
_POOLS = {
    "solo": "answers no ping while it works, so that it looks dead, and can't be told to give up a step",
    "threads": "can't be told to give up a step, and ends only when it has ended",
    "eventlet": "does nothing else while it reads, compresses or waits, so that it looks dead",
    "gevent": "does nothing else while it reads, compresses or waits, so that it looks dead",
}

Check = Callable[[Celery], Iterator[CheckMessage]]


def check_workers(**_options: object) -> list[CheckMessage]:
    """What would hurt wherever it runs."""
    return _told_by(
        _result_backend, _content, _pickle, _results, _queue, _beat, _prefetch, _limits, _late, _pool, _files
    )


def check_deployment(**_options: object) -> list[CheckMessage]:
    """What is right in tests and in development, and hurts in a deployment: ``manage.py check --deploy``."""
    return _told_by(_eager, _memory, _sweep, _consumer_timeout)


def _told_by(*checks: Check) -> list[CheckMessage]:
    # Without an app of the project's there is one that Celery makes up, with nobody's settings.
    app = app_or_default()
    if app.main == "default":
        return []
    # Registers the tasks with it. Not before: who takes a snapshot without Celery's app needs none of them.
    import django_snapshots.tasks  # noqa: F401

    return [message for check in checks for message in check(app)]


def transport_of(app: Celery) -> str:
    """The name of the transport that messages are sent by, such as ``redis``."""
    urls: Any = app.conf.broker_write_url or app.conf.broker_url or "amqp://"
    first = urls.split(";")[0] if isinstance(urls, str) else urls[0]
    return str(app.conf.broker_transport or first.partition("://")[0])


def _is_amqp(app: Celery) -> bool:
    return transport_of(app) in ("amqp", "amqps", "pyamqp")


def _is_redis(app: Celery) -> bool:
    return transport_of(app) in ("redis", "rediss", "sentinel")


def _types(names: Any) -> set[str]:
    """The content types that Celery makes of *names*."""
    return set(prepare_accept_content(names) or ())


def _result_backend(app: Celery) -> Iterator[CheckMessage]:
    if str(app.conf.result_backend or "").startswith("rpc"):
        yield Error(
            "Celery's result_backend is rpc://, which lets only the worker that was asked answer. A run is ended by "
            "whichever worker ends its last step, so nobody would ever get a result.",
            hint="Use another one, such as redis:// or django-db, or none: the journal knows what became of a run.",
            id="snapshots.E030",
        )


def _content(app: Celery) -> Iterator[CheckMessage]:
    if _JSON not in _types(app.conf.accept_content):
        yield Error(
            f"Celery's accept_content is {app.conf.accept_content}, and the tasks of this package are sent as JSON: "
            "workers would refuse every one.",
            hint='Add "json" to accept_content (CELERY_ACCEPT_CONTENT).',
            id="snapshots.E031",
        )


def _pickle(app: Celery) -> Iterator[CheckMessage]:
    if _PICKLE in _types(app.conf.accept_content):
        yield Warning(
            "Celery's accept_content has pickle: whoever can write to the broker can run any code as the worker, which "
            "can read and replace every database.",
            hint='Set accept_content to ["json"], or give the queue of the snapshots workers of their own that do so.',
            id="snapshots.W034",
        )


def _results(app: Celery) -> Iterator[CheckMessage]:
    if not app.conf.result_backend:
        return
    accepted = app.conf.result_accept_content
    accepted = app.conf.accept_content if accepted is None else accepted
    if not _types([app.conf.result_serializer]) <= _types(accepted):
        yield Warning(
            f"Celery's result_serializer is {app.conf.result_serializer}, which whoever waits for a result would not "
            "accept: .get() fails although the run has succeeded.",
            hint='Set result_serializer to "json", or add it to result_accept_content.',
            id="snapshots.W037",
        )


def _queue(app: Celery) -> Iterator[CheckMessage]:
    try:
        wanted = get_queue()
    except SnapshotError:
        return  # the check of all settings says it
    try:
        route = app.amqp.router.route({"queue": wanted}, STEP, (), {})
    except Exception as error:  # noqa: BLE001 - a router of the project's own raises what it likes
        yield Error(
            f"Celery can't send anything to the queue {wanted!r} of SNAPSHOTS: {type(error).__name__}: {error}",
            hint='Add the queue to task_queues, name another one in SNAPSHOTS["QUEUE"], or correct task_routes.',
            id="snapshots.E033",
        )
        return
    elsewhere = {key: route[key] for key in ("exchange", "routing_key") if route.get(key)}
    if elsewhere:
        told = ", ".join(f"{key} {value}" for key, value in elsewhere.items())
        yield Warning(
            f"Celery's task_routes sends the tasks of this package by {told}, and so perhaps past the queue {wanted!r} "
            'of SNAPSHOTS["QUEUE"], which their workers consume.',
            hint='Leave "django_snapshots.*" out of task_routes: the queue is the one in SNAPSHOTS["QUEUE"].',
            id="snapshots.W035",
        )


def _beat(app: Celery) -> Iterator[CheckMessage]:
    if not apps.is_installed("django_celery_beat") or not _schedules():
        return
    named = app.conf.beat_scheduler
    # Not set is what it is where beat is started with -S django; beat itself says if it wasn't.
    if named != _DEFAULT_SCHEDULER and not _reads_the_database(named):
        yield Error(
            f"Celery's beat_scheduler is {named}, which does not read the database: nothing of "
            'SNAPSHOTS["SCHEDULES"] would run.',
            hint='Set it to "django_celery_beat.schedulers:DatabaseScheduler" (CELERY_BEAT_SCHEDULER).',
            id="snapshots.E032",
        )


def _schedules() -> Mapping[str, Any] | None:
    try:
        return get_schedules()
    except SnapshotError:
        return None  # the check of all settings says it


def _reads_the_database(named: Any) -> bool:
    from django_celery_beat.schedulers import DatabaseScheduler

    names: Any = load_extension_class_names("celery.beat_schedulers")
    try:
        found = symbol_by_name(named, aliases=dict(names))
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(found, type) and issubclass(found, DatabaseScheduler)


def _prefetch(app: Celery) -> Iterator[CheckMessage]:
    if app.conf.worker_prefetch_multiplier == 1 or (app.conf.worker_disable_prefetch and _is_redis(app)):
        return
    more = ", and on Redis worker_disable_prefetch to True" if _is_redis(app) else ""
    yield Warning(
        f"With Celery's worker_prefetch_multiplier of {app.conf.worker_prefetch_multiplier} a worker holds back steps "
        "that wait behind one of hours, while other workers have nothing to do.",
        hint=f"Set worker_prefetch_multiplier to 1 (CELERY_WORKER_PREFETCH_MULTIPLIER){more}, or start the workers of "
        "the snapshots with --prefetch-multiplier=1 and silence this.",
        id="snapshots.W030",
    )


def _limits(app: Celery) -> Iterator[CheckMessage]:
    step = app.tasks[STEP]
    limits = {"time_limit": step.time_limit, "soft_time_limit": step.soft_time_limit}
    short = [f"{name} of {limit:g} s" for name, limit in limits.items() if limit and limit < _LONG]
    if short:
        yield Warning(
            f"Celery's settings give each step a {' and a '.join(short)}: the dump or restore of a large database "
            "would be ended in the middle.",
            hint=f'Lift it for the steps alone: task_annotations = {{"{STEP}": {{"time_limit": 604800, '
            '"soft_time_limit": 604800}}; an entry "*" there must not set a limit, as it wins.',
            id="snapshots.W031",
        )


def _late(app: Celery) -> Iterator[CheckMessage]:
    if app.tasks[STEP].acks_late:
        yield Warning(
            "Celery's task_annotations set acks_late for the steps. A broker sends again what is not acknowledged: "
            "RabbitMQ after half an hour, and the worker ends after its step, as does the next; Redis after an hour.",
            hint="Leave acks_late of the tasks of this package alone. The journal finds what was lost.",
            id="snapshots.W032",
        )


def _pool(app: Celery) -> Iterator[CheckMessage]:
    pool = app.conf.worker_pool
    if pool in ("prefork", "processes"):
        return
    yield Warning(
        f"Celery's worker_pool is {pool}: such a worker {_POOLS.get(pool, 'has not been tried with this package')}.",
        hint='Set worker_pool to "prefork", or start their workers with --pool=prefork and silence this.',
        id="snapshots.W033",
    )


def _files(app: Celery) -> Iterator[CheckMessage]:
    if transport_of(app) == "filesystem":
        yield Warning(
            "kombu's filesystem:// loses messages that are read while they are written, and keeps what is sent to a "
            "worker that is gone: a request to shut down ends the next one of that name.",
            hint=f'Set CELERY_BROKER_TRANSPORT = "{TRANSPORT}", and CELERY_BROKER_TRANSPORT_OPTIONS = '
            'transport_options(Path("/var/lib/broker")) with transport_options of that module.',
            id="snapshots.W036",
        )


def _eager(app: Celery) -> Iterator[CheckMessage]:
    if app.conf.task_always_eager:
        yield Warning(
            "Celery's task_always_eager is set: a snapshot is taken by the process that asks for it, such as a web "
            "request, which waits for its end.",
            hint="Set task_always_eager for tests alone (CELERY_TASK_ALWAYS_EAGER).",
            id="snapshots.W038",
        )


def _memory(app: Celery) -> Iterator[CheckMessage]:
    if transport_of(app) == "memory":
        yield Warning(
            "Celery's broker is memory://, which no other process can reach: a run would stay queued for ever.",
            hint="Set broker_url (CELERY_BROKER_URL) to redis://... or amqp://...",
            id="snapshots.W039",
        )


def _sweep(_app: Celery) -> Iterator[CheckMessage]:
    if not apps.is_installed("django_celery_beat"):
        yield Warning(
            "django_celery_beat is not in INSTALLED_APPS, so that nothing looks after runs by the clock: one whose "
            "worker was killed stays as it is until somebody does.",
            hint='Add "django_celery_beat" and start beat, or have cron run "manage.py snapshots sweep" every minute '
            "and silence this.",
            id="snapshots.W040",
        )


def _consumer_timeout(app: Celery) -> Iterator[CheckMessage]:
    if not _is_amqp(app) or _waits_long(app):
        return
    yield Warning(
        "RabbitMQ ends the connection of a worker that holds a message for half an hour, and the worker ends after its "
        "step. A step that waits behind a long one is such a message, also with a worker_prefetch_multiplier of 1.",
        hint="Raise consumer_timeout in rabbitmq.conf or by a policy, or give the queue the argument "
        "x-consumer-timeout in task_queues (RabbitMQ 3.12 and newer). Where the server has it, silence this.",
        id="snapshots.W041",
    )


def _waits_long(app: Celery) -> bool:
    """Whether the queue asks for a time of a day or more, in milliseconds."""
    try:
        queue = app.amqp.queues[get_queue()]
    except (KeyError, SnapshotError):
        return False
    return int((queue.queue_arguments or {}).get("x-consumer-timeout", 0)) >= _LONG * 1000
