"""The table of contents of a pg_dump archive, however it is cut into chunks; hostile and newer ones have no items."""

from __future__ import annotations

import pytest

from django_snapshots.connectors.postgres.toc import Contents, Item


def number(value):
    return (b"\1" if value < 0 else b"\0") + abs(value).to_bytes(4, "little")


def text(value):
    return number(-1) if value is None else number(len(value)) + value


WITH_DATA = (b"TABLE DATA", b"BLOBS")


def archive(minor=14, entries=((b"TABLE DATA", 16_384), (b"TABLE", 16_384), (b"BLOB", 7)), *, compressed=False):
    head = b"PGDMP" + bytes([1, minor, 0, 4, 8, 1]) + (bytes([compressed]) if minor >= 15 else number(compressed))
    head += number(1) * 7 + text(b"shop") + text(b"15.1") + text(b"15.1")
    body = number(len(entries))
    for position, (kind, oid) in enumerate(entries):
        body += number(position) + number(1) + text(b"1259") + text(str(oid).encode()) + text(b"tag") + text(kind)
        body += number(3) + text(b"definition" * 50) + text(None) + text(b"") + text(b"public") + text(None)
        body += (text(b"heap") if minor >= 14 else b"") + (number(114) if minor >= 16 else b"")
        body += text(b"owner") + text(b"false") + text(b"1") + text(b"2") + text(None)
        body += (b"\1" if kind in WITH_DATA else b"\3") + bytes(8)
    return head + body


ITEMS = (Item(kind="TABLE DATA", oid=16_384), Item(kind="TABLE", oid=16_384), Item(kind="BLOB", oid=7))


def fed(content, size):
    contents = Contents()
    for start in range(0, len(content), size):
        contents.feed(content[start : start + size])
    contents.end()
    return contents


def read(content, size):
    return fed(content, size).items


def rows(position, *pieces):
    return b"\1" + number(position) + b"".join(map(text, pieces)) + number(0)


def large_objects(position, objects):
    told = (number(oid) + b"".join(map(text, pieces)) + number(0) for oid, pieces in objects.items())
    return b"\3" + number(position) + b"".join(told) + number(0)


def is_cut_off(content, size):
    return fed(content, size).is_cut_off


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


ENTRIES = ((b"TABLE DATA", 16_384), (b"TABLE", 16_384), (b"TABLE DATA", 16_385), (b"BLOBS", 0), (b"TABLE DATA", 16_386))
END = b"\\.\n\n\n"
OBJECTS = {7: [b"\0" * 40, b"x\0\0\0\0\0\1" * 9], 2**31: [], 8: [b"\1\0\0\0\0\0" * 3]}


@pytest.mark.parametrize("size", [1, 7, 300, 100_000])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("minor", [12, 16])
def test_an_archive_is_cut_off_wherever_it_ends_but_at_its_end(minor, compressed, size):
    table = [b"\0" * 300, b"\0\1"] if compressed else [b"1\tone\n", b"x" * 256, b"y" * 65_536, END]
    blocks = [rows(0, *table), large_objects(3, OBJECTS), rows(2, END), rows(4)]
    whole = archive(minor, ENTRIES, compressed=compressed) + b"".join(blocks)
    assert not is_cut_off(whole, size)
    for length in {*range(0, len(whole), 1009), *range(len(whole) - 400, len(whole))}:
        assert is_cut_off(whole[:length], max(size, 50)), length
    for one in blocks:
        assert is_cut_off(whole.replace(one, b""), size), "a block is missing"
    for odd in (b"\2", b"\1\1", b"\1" + number(4), b"\3" + number(3) + number(9) + number(-5)):
        assert is_cut_off(whole + odd, size), "what no archive has"


def test_without_data_the_table_of_contents_is_all():
    assert not is_cut_off(archive(16, ((b"TABLE", 16_384),)), 64)
    assert not is_cut_off(archive(99), 64), "nobody can say"
