"""The checks of the project's Celery settings: each finds its defect, says what to write, and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, current_app
from django.core.checks import run_checks
from kombu import Queue

from django_snapshots.checks import TAG
from django_snapshots.checks.workers import STEP, check_deployment, check_workers, transport_of
from django_snapshots.filesystem_broker import TRANSPORT

GOOD = {
    "broker_url": "redis://localhost/0",
    "worker_prefetch_multiplier": 1,
    "beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler",
}


@pytest.fixture
def found(settings, tmp_path):
    """``found(**celery)`` -> the ids of what the checks say of a project with these settings of Celery."""
    settings.SNAPSHOTS = {"STORAGE": str(tmp_path), "SCHEDULES": {"nightly": {"cron": "0 3 * * *"}}}
    before = current_app._get_current_object()
    made: list[Celery] = []

    def found(name: str = "project", **celery: Any) -> list[str]:
        made.append(Celery(name))
        made[-1].conf.update({**GOOD, **celery})
        messages = [*check_workers(), *check_deployment()]
        assert all(message.hint for message in messages)
        return [message.id.removeprefix("snapshots.") for message in messages]

    yield found
    before.set_current()
    for app in made:
        app.close()


def test_a_project_where_all_is_well_hears_nothing(found) -> None:
    assert found() == []


def test_the_checks_are_registered(found) -> None:
    found(task_time_limit=60, task_always_eager=True)
    told = {message.id for message in run_checks(tags=[TAG], include_deployment_checks=True)}
    assert {"snapshots.W031", "snapshots.W038"} <= told
    assert "snapshots.W038" not in {message.id for message in run_checks(tags=[TAG])}


def test_an_app_that_celery_made_up_is_nobodys(found) -> None:
    bad = {"worker_prefetch_multiplier": 4, "task_always_eager": True}
    assert found(**bad) == ["W030", "W038"]
    assert found("default", **bad) == []


@pytest.mark.parametrize(
    ("bad", "good", "told"),
    [
        ({"result_backend": "rpc://"}, {"result_backend": "redis://localhost/1"}, ["E030"]),
        ({"accept_content": ["yaml"]}, {"accept_content": ["application/json"]}, ["E031"]),
        ({"accept_content": ["json", "pickle"]}, {"accept_content": ["json", "yaml"]}, ["W034"]),
        (
            {"result_backend": "redis://localhost/1", "result_serializer": "pickle"},
            {
                "result_backend": "redis://localhost/1",
                "result_serializer": "pickle",
                "result_accept_content": ["pickle", "json"],
            },
            ["W037"],
        ),
        (
            {"task_queues": [Queue("mail")], "task_create_missing_queues": False},
            {"task_queues": [Queue("mail"), Queue("snapshots")], "task_create_missing_queues": False},
            ["E033"],
        ),
        (
            {"task_routes": {"django_snapshots.*": {"routing_key": "slow"}}},
            {"task_routes": {"django_snapshots.*": {"queue": "slow"}, "mail.*": {"routing_key": "slow"}}},
            ["W035"],
        ),
        ({"task_routes": "nowhere.at.all"}, {}, ["E033"]),
        ({"beat_scheduler": "celery.beat:Scheduler"}, {"beat_scheduler": "django"}, ["E032"]),
        ({"beat_scheduler": "nowhere:Scheduler"}, {"beat_scheduler": "celery.beat:PersistentScheduler"}, ["E032"]),
        ({"worker_prefetch_multiplier": 4}, {}, ["W030"]),
        ({"worker_prefetch_multiplier": 0},
         {"worker_prefetch_multiplier": 0, "worker_disable_prefetch": True}, ["W030"]),
        (
            {"worker_prefetch_multiplier": 4, "worker_disable_prefetch": True, "broker_url": "sqs://"},
            {"broker_url": "sqs://"},
            ["W030"],
        ),
        ({"task_time_limit": 3600}, {"task_time_limit": 7 * 86400}, ["W031"]),
        ({"task_soft_time_limit": 60}, {"task_annotations": {"mail.send": {"time_limit": 60}}}, ["W031"]),
        ({"task_annotations": {"*": {"time_limit": 60}}}, {}, ["W031"]),
        # What the hint says to write.
        (
            {"task_time_limit": 3600, "task_soft_time_limit": 3000},
            {
                "task_time_limit": 3600,
                "task_soft_time_limit": 3000,
                "task_annotations": {STEP: {"time_limit": 604800, "soft_time_limit": 604800}},
            },
            ["W031"],
        ),
        ({"task_annotations": {"*": {"acks_late": True}}}, {"task_acks_late": True}, ["W032"]),
        ({"worker_pool": "threads"}, {"worker_pool": "processes"}, ["W033"]),
        ({"worker_pool": "project.pools:Own"}, {"worker_pool": "prefork"}, ["W033"]),
        ({"broker_url": "filesystem://"}, {"broker_url": "filesystem://", "broker_transport": TRANSPORT}, ["W036"]),
        ({"task_always_eager": True}, {"task_always_eager": False}, ["W038"]),
        ({"broker_url": "memory://"}, {"broker_url": "memory://", "broker_write_url": "redis://"}, ["W039"]),
        (
            {"broker_url": "amqp://localhost//"},
            {
                "broker_url": "amqp://localhost//",
                "task_queues": [Queue("snapshots", queue_arguments={"x-consumer-timeout": 7 * 86400 * 1000})],
            },
            ["W041"],
        ),
        # Celery's default.
        ({"broker_url": None}, {"broker_url": ["redis://one", "redis://other"]}, ["W041"]),
        # What holds for our tasks whatever is set, or does no harm.
        ({"task_serializer": "pickle", "task_ignore_result": True, "task_store_errors_even_if_ignored": True}, {}, []),
        ({"worker_cancel_long_running_tasks_on_connection_loss": True, "worker_max_tasks_per_child": 1}, {}, []),
        ({"broker_transport_options": {"visibility_timeout": 60}, "worker_max_memory_per_child": 1000}, {}, []),
    ],
    ids=repr,
)  # fmt: skip
def test_each_defect_is_told_and_only_it(found, bad: dict[str, Any], good: dict[str, Any], told: list[str]) -> None:
    assert found(**bad) == told
    assert found(**good) == []


def test_a_scheduler_is_nobodys_business_without_schedules(found, settings) -> None:
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "SCHEDULES": None}
    assert found(beat_scheduler="celery.beat:Scheduler") == []


def test_settings_that_can_not_work_are_told_once(found, settings) -> None:
    """By the check of all settings, and not by these."""
    settings.SNAPSHOTS = {"QUEUE": 7, "SCHEDULES": 7}
    assert found(beat_scheduler="celery.beat:Scheduler") == []


def test_without_beat_somebody_has_to_sweep(found, settings) -> None:
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "django_celery_beat"]
    assert found() == ["W040"]


def test_the_transport_is_found(found) -> None:
    app = Celery("project", set_as_current=False)
    for values, name in (
        ({"broker_url": "redis://a;redis://b"}, "redis"),
        ({"broker_url": "redis://a", "broker_transport": TRANSPORT}, TRANSPORT),
        ({"broker_url": ["sentinel://a"], "broker_transport": None}, "sentinel"),
    ):
        app.conf.update(values)
        assert transport_of(app) == name
