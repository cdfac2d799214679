"""Fills the shop and the archive with data, and destroys it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from django.conf import settings
from django.core.files.base import ContentFile
from django.db import connection, transaction
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from tasks.demo.archive.models import ArchivedOrder
from tasks.demo.shop.models import Customer, Order, OrderItem, Product, Review

CUSTOMERS, PRODUCTS, ORDERS, ARCHIVED = 500, 40, 4000, 6000
PICTURE_SIDE = 410
"""Pixels; a picture of noise has three bytes for each, which can't be compressed."""

_FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def fill(random: Random) -> None:
    """Customers, products with pictures, orders, reviews, an archive, and a nightly snapshot in beat's schedule."""
    with transaction.atomic():
        customers = Customer.objects.bulk_create(_customers())
        products = [_product(number, random) for number in range(1, PRODUCTS + 1)]
        orders = Order.objects.bulk_create(
            Order(customer=random.choice(customers), placed_at=_moment(random)) for _ in range(ORDERS)
        )
        OrderItem.objects.bulk_create(item for order in orders for item in _items(order, products, random))
        Review.objects.bulk_create(Review(product=product, text="Würde ich wieder kaufen ☕") for product in products)
        _schedule()
    ArchivedOrder.objects.bulk_create(
        ArchivedOrder(customer=random.choice(customers).name, total=random.randint(1, 500), placed_at=_moment(random))
        for _ in range(ARCHIVED)
    )


def destroy() -> list[str]:
    """Delete the orders, drop a table, empty the archive, spoil and delete pictures; say what was done."""
    orders, _ = Order.objects.all().delete()
    archived, _ = ArchivedOrder.objects.all().delete()
    with connection.schema_editor() as editor:
        editor.delete_model(Review)
    pictures = sorted(Path(settings.MEDIA_ROOT).rglob("*.png"))
    half = len(pictures) // 2
    for picture in pictures[:half]:
        picture.write_bytes(b"encrypted by a ransom program")
    for picture in pictures[half:]:
        picture.unlink()
    return [
        f"deleted {orders:,} orders and their items",
        f"dropped the table {Review._meta.db_table}",
        f"deleted {archived:,} rows of the archive",
        f"overwrote {half} pictures",
        f"deleted {len(pictures) - half}",
    ]


def _customers() -> Iterator[Customer]:
    for number in range(1, CUSTOMERS + 1):
        yield Customer(name=f"Customer {number}", email=f"customer{number}@shop.example")


def _product(number: int, random: Random) -> Product:
    product = Product(name=f"Product {number}", price=random.randint(100, 10_000) / 100)
    product.picture.save(f"product-{number}.png", ContentFile(_picture(random)))
    return product


def _items(order: Order, products: list[Product], random: Random) -> Iterator[OrderItem]:
    for product in random.sample(products, random.randint(1, 4)):
        yield OrderItem(order=order, product=product, quantity=random.randint(1, 5))


def _moment(random: Random) -> datetime:
    return _FIRST_DAY + timedelta(seconds=random.randrange(700 * 24 * 3600))


def _schedule() -> None:
    every_night, _ = CrontabSchedule.objects.get_or_create(minute="0", hour="3")
    PeriodicTask.objects.create(name="Nightly snapshot", task="django_snapshots.snapshot", crontab=every_night)


def _picture(random: Random) -> bytes:
    """A PNG of coloured noise (RFC 2083: signature, header, image data, end)."""
    side = PICTURE_SIDE
    rows = b"".join(b"\0" + random.randbytes(side * 3) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, body) for kind, body in chunks)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
