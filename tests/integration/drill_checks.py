"""What a project might name in ``SNAPSHOTS["DRILL_CHECKS"]``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

NOT_A_FUNCTION = 1


def has_its_group(using: str) -> None:
    """The rows are those of the snapshot, seen by the ORM."""
    from django.contrib.auth.models import Group, Permission

    alias = using.removeprefix("drill_")
    assert [group.name for group in Group.objects.using(using).all()] == [f"order in {alias}"]
    # Relations stay on the scratch database.
    permission = Permission.objects.using(using).select_related("content_type").first()
    assert permission is not None and permission.content_type._state.db == using


def notes_its_server(using: str) -> None:
    """Which one it is, by its own words."""
    from django.db import connections

    with connections[using].cursor() as cursor:
        cursor.execute("SELECT @@port" if connections[using].vendor == "mysql" else "SHOW port")
        with open(os.environ["DRILL_SERVERS"], "a") as servers:
            servers.write(f"{using} {cursor.fetchone()[0]}\n")


def is_true(using: str) -> bool:
    return True


def raises(using: str) -> None:
    raise ValueError("there is no order")


def exits(using: str) -> None:
    sys.exit("there is no order")


def is_false(using: str) -> bool:
    return False


def says(using: str) -> str:
    return "3 orders have no customer"


def lists(using: str) -> list[str]:
    return ["one", "two"]


def returns_nonsense(using: str) -> int:
    return 0


def waits(using: str) -> None:
    """Until somebody kills the process."""
    Path(os.environ["DRILL_BEGUN"]).touch()
    signal.pause()


def waits_once(using: str) -> None:
    """As ``waits``, but the first to come only."""
    begun = Path(os.environ["DRILL_BEGUN"])
    if not begun.exists():
        begun.touch()
        signal.pause()


def is_hidden(using: str) -> str:
    """Another thread, and the settings, know nothing of the alias."""
    import threading

    from django.db import connections

    seen: list[str] = []

    def look() -> None:
        try:
            connections[using]
            seen.append("another thread reaches it")
        except Exception:
            pass

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return "; ".join([*seen, *(["it is a key of DATABASES"] if using in connections else [])])


def is_full(using: str) -> None:
    """The scratch database's disk has no room for what the check writes."""
    from django.db import connections

    with connections[using].cursor() as cursor:
        cursor.execute("PRAGMA max_page_count = 1")
        cursor.execute("CREATE TABLE too_much AS SELECT zeroblob(10000000) AS zeros")


def loses_its_session(using: str) -> None:
    """Somebody ends it on the server."""
    from django.db import connections

    with connections[using].cursor() as cursor:
        if connections[using].vendor == "mysql":
            cursor.execute("KILL CONNECTION_ID()")
        else:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        cursor.execute("SELECT 1")


def knows_its_types(using: str) -> list[str]:
    """What Django and the app of content types remember by the alias's name is of this scratch database."""
    from django.contrib.auth.models import Group
    from django.contrib.contenttypes.models import ContentType
    from django.db import connections

    wrong = []
    there = ContentType.objects.using(using).get(app_label="auth", model="group").pk
    known = ContentType.objects.db_manager(using).get_for_model(Group).pk
    if known != there:
        wrong.append(f"content type {known} instead of {there}")
    if connections[using].vendor == "postgresql":
        from django.contrib.postgres.signals import get_hstore_oids

        with connections[using].cursor() as cursor:
            cursor.execute("SELECT oid FROM pg_type WHERE typname = 'hstore'")
            oids = tuple(oid for (oid,) in cursor.fetchall())
        if get_hstore_oids(using)[0] != oids:
            wrong.append(f"hstore {get_hstore_oids(using)[0]} instead of {oids}")
    return wrong
