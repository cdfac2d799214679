"""The table of contents of a pg_dump archive, however it is cut into chunks; hostile and newer ones have no items."""

from __future__ import annotations

import pytest

from django_snapshots.connectors.postgres.toc import Contents, Item


def number(value):
    return (b"\1" if value < 0 else b"\0") + abs(value).to_bytes(4, "little")


def text(value):
    return number(-1) if value is None else number(len(value)) + value


def archive(minor=14, entries=((b"TABLE DATA", 16_384), (b"TABLE", 16_384), (b"BLOB", 7))):
    head = b"PGDMP" + bytes([1, minor, 0, 4, 8, 1]) + (b"\0" if minor >= 15 else number(0))
    head += number(1) * 7 + text(b"shop") + text(b"15.1") + text(b"15.1")
    body = number(len(entries))
    for position, (kind, oid) in enumerate(entries):
        body += number(position) + number(1) + text(b"1259") + text(str(oid).encode()) + text(b"tag") + text(kind)
        body += number(3) + text(b"definition" * 50) + text(None) + text(b"") + text(b"public") + text(None)
        body += (text(b"heap") if minor >= 14 else b"") + (number(114) if minor >= 16 else b"")
        body += text(b"owner") + text(b"false") + text(b"1") + text(b"2") + text(None) + bytes(9)
    return head + body


ITEMS = (Item(kind="TABLE DATA", oid=16_384), Item(kind="TABLE", oid=16_384), Item(kind="BLOB", oid=7))


def read(content, size):
    contents = Contents()
    for start in range(0, len(content), size):
        contents.feed(content[start : start + size])
    contents.end()
    return contents.items


@pytest.mark.parametrize("minor", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("size", [1, 7, 300, 100_000])
def test_every_form_is_read_in_any_pieces(minor, size):
    assert read(archive(minor) + b"data" * 5000, size) == ITEMS


def test_what_is_cut_off_newer_or_nothing_has_no_items():
    whole = archive()
    assert all(read(whole[:length], 64) is None for length in range(len(whole)))
    assert read(archive(99), 64) is None
    assert read(b"no archive" * 1000, 64) is None
    assert read(whole.replace(b"16384", b"x6384"), 64) is None
