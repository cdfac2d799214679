"""Reading a MySQL dump before it is executed."""

from __future__ import annotations

from itertools import chain

import pytest

from django_snapshots.connectors.mysql.scan import EVENTS, Findings, scan, split, without_sandbox

DUMP = (
    b"/*M!999999\\- enable the sandbox mode */ \n"
    b"DROP TABLE IF EXISTS `a ``b`;\nCREATE TABLE `a ``b` (\n);\nCREATE SEQUENCE `s` start with 1;\n"
    b"INSERT INTO `t` VALUES ('\\nUSE x;\\n'),\n('" + b"x" * 9000 + b"DEFINER=`no`@`no`');\n"
    b"DELIMITER ;;\n/*!50003 CREATE*/ /*!50017 DEFINER=`u``1`@`%`*/ /*!50003 TRIGGER t\n"
    b"USE inside;\nCREATE TABLE `in`\n;;\n"
    b'CREATE DEFINER="other"@"h" PROCEDURE p()\nDROP DATABASE inside\n;;\nDELIMITER ;\n'
    b"/*!50013 DEFINER=`role` SQL SECURITY DEFINER */\n"
    b"-- Dump completed\n"
)
LATER = b"CREATE TABLE `later` (\n);\n-- Dump completed on 2026-01-01\n\n"


def pieces(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 4096, 4097, 8192])
def test_the_same_is_found_whatever_the_chunks(size: int) -> None:
    assert scan(pieces(DUMP + EVENTS + LATER, size)) == Findings(
        length=len(DUMP + EVENTS + LATER),
        complete=True,
        events_at=len(DUMP),
        definers=frozenset({"u`1@%", "other@h", "role"}),
        tables=frozenset({"a `b", "s", "later"}),
        altered_databases=frozenset(),
        leaves_database=False,
        functions=True,
        longest_line=9000 + len("('DEFINER=`no`@`no`');"),
    )


@pytest.mark.parametrize("content", [b"", DUMP[:-5], DUMP + b"x", DUMP + b"\n-- Dump\n", b"x -- Dump completed\n"])
def test_a_dump_without_its_last_line_is_not_complete(content: bytes) -> None:
    assert not scan(pieces(content, 100)).complete


def test_the_events_line_counts_only_after_a_whole_dump() -> None:
    assert scan([b"CREATE TABLE `t` (\n" + EVENTS + DUMP]).events_at is None


@pytest.mark.parametrize("size", [1, 3, 30, 100_000])
def test_the_sandbox_line_is_left_out(size: int) -> None:
    assert b"".join(without_sandbox(iter(pieces(DUMP, size)))) == DUMP.partition(b"\n")[2]
    assert b"".join(without_sandbox(iter(pieces(LATER, size)))) == LATER


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("offset", [0, 1, 500, len(DUMP)])
def test_a_stream_is_split_at_a_byte(size: int, offset: int) -> None:
    before, after = split(iter(pieces(DUMP, size)), offset)
    assert b"".join(before) == DUMP[:offset]
    assert b"".join(chain(after)) == DUMP[offset:]
