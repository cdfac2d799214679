"""Fills the test project's tables with what hurts, and reads all of them back for a comparison."""

from __future__ import annotations

import datetime
import math
import uuid
from decimal import Decimal
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connections, models

from tests.project.models import (
    Author,
    Authorship,
    Book,
    Chicken,
    CompositeKey,
    Country,
    Cover,
    Egg,
    EveryColumn,
    Hidden,
    NonAscii,
    Note,
    Place,
    Restaurant,
    Tag,
    UuidKey,
)

MOMENT = datetime.datetime(2021, 2, 3, 4, 5, 6, 789_123, tzinfo=datetime.UTC)
TEXT = "line\nline\r\n\ttab \"quoted\" 'single' \\ é 表 😀 </script> \u2028 \x7f %s {}"


def migrate(alias: str) -> None:
    """Make every table of the test project in *alias*."""
    call_command("migrate", database=alias, verbosity=0, interactive=False)


def fill(alias: str) -> None:
    """Put rows into every table that has a point to make."""
    _every_column(alias)
    _related(alias)
    NonAscii._base_manager.using(alias).create(value="значение")
    Hidden._base_manager.using(alias).create(visible=False)
    CompositeKey._base_manager.using(alias).create(tenant=1, number=2, note="a")
    CompositeKey._base_manager.using(alias).create(tenant=1, number=3, note="b")
    parent = UuidKey._base_manager.using(alias).create(id=uuid.UUID(int=2**128 - 1))
    UuidKey._base_manager.using(alias).create(id=uuid.UUID(int=0), parent=parent)
    user = get_user_model()._default_manager.db_manager(alias).create_user(username="é", password="pw")
    user.groups.add(Group.objects.using(alias).create(name="editors"))


def _every_column(alias: str) -> None:
    text = TEXT if connections[alias].vendor == "postgresql" else TEXT + "\0"
    # SQLite has no decimals; Django reads 15 digits of what it has.
    digits = "12345.6789012345" if connections[alias].vendor == "sqlite" else "12345678901234567890.0123456789"
    extreme = EveryColumn(
        big_integer=-(2**63),
        binary=bytes(range(256)),
        boolean=None,
        char=text,
        date=datetime.date(1, 1, 1) if connections[alias].vendor != "mysql" else datetime.date(1000, 1, 1),
        date_time=MOMENT,
        decimal=Decimal(digits),
        duration=-datetime.timedelta(days=3, microseconds=1),
        float=math.pi * 1e-300,
        generic_ip="2001:db8::1",
        integer=-(2**30),
        json={"é": [1, 1.5, None, True, "\n"], "deep": {"big": 2**60}},
        nullable_json=[],
        positive_big=2**63 - 1,
        positive=2**31 - 1,
        positive_small=32767,
        small_integer=-32000,
        text=text * 100,
        time=datetime.time(23, 59, 59, 999_999),
        uuid=uuid.UUID(int=7),
    )
    extreme.save(using=alias)
    EveryColumn(json=models.Value(None, models.JSONField())).save(using=alias)
    # The columns that set themselves must come back as they were, not as the time of the restore.
    EveryColumn._base_manager.using(alias).update(created=MOMENT, changed=MOMENT)


def _related(alias: str) -> None:
    country = Country._base_manager.using(alias).create(pk=900, code="nz", name="Aotearoa")
    place = Place._base_manager.using(alias).create(name="here", country=country)
    restaurant = Restaurant(name="there", stars=3)
    restaurant.save(using=alias)
    restaurant.near.add(place)
    chicken = Chicken._base_manager.using(alias).create(name="first")
    chicken.hatched_from = Egg._base_manager.using(alias).create(laid_by=chicken)
    chicken.save(using=alias)
    tags = [Tag._base_manager.using(alias).create(name=name) for name in ("a", "b", "c")]
    tags[0].friends.add(tags[2])
    author = Author._base_manager.using(alias).create(name="author")
    author.tags.set(tags[1:])
    book = Book._base_manager.using(alias).create(title="book")
    Authorship._base_manager.using(alias).create(author=author, book=book, share=Decimal("33.33"))
    Cover._base_manager.using(alias).create(book=book, colour="red")
    kind = ContentType.objects.using(alias).get(app_label="project", model="book")
    Note._base_manager.using(alias).create(content_type=kind, object_id=book.pk)


def content(alias: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row of every table that has a model, as the database driver gives it."""
    found = {}
    connection = connections[alias]
    there = set(connection.introspection.table_names())
    for model in apps.get_models(include_auto_created=True):
        table = model._meta.db_table
        if table in there and not table.startswith("django_snapshots_"):
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
                rows = [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in cursor.fetchall()]
            found[table] = sorted(rows, key=repr)
    return found


def empty(alias: str) -> None:
    """Take every row out of every table, as an accident would."""
    connection = connections[alias]
    with connection.constraint_checks_disabled(), connection.cursor() as cursor:
        for table in content(alias):
            cursor.execute(
                f"TRUNCATE {connection.ops.quote_name(table)} CASCADE"
                if connection.vendor == "postgresql"
                else f"DELETE FROM {connection.ops.quote_name(table)}"
            )
