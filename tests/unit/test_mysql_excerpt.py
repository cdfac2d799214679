"""What is left of a dump for single tables, however its bytes are cut, and whatever bodies of routines look like."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from django_snapshots.connectors.mysql.excerpt import Excerpt

LONG = b"INSERT INTO `wanted` VALUES (1,'" + b"x" * 150_000 + b"');\n"
OTHER = b"INSERT INTO `other` VALUES (1,'" + b"y" * 150_000 + b"');\n"
PARTS: list[tuple[bool, bytes]] = [
    (True, b"/*M!999999\\- enable the sandbox mode */ \n"),
    (False, b"-- MariaDB dump 10.19\n-- Host: here\n"),
    (True, b"/*!40014 SET FOREIGN_KEY_CHECKS=0 */;\n\n--\n"),
    (False, b"-- Sequence structure for `numbers`\n"),
    (True, b"--\nCREATE SEQUENCE `numbers`;\n"),
    (False, b"-- Table structure for table `other`\n--\nCREATE TABLE `other` (\n  `a` int COMMENT '-- '\n);\n"),
    (False, OTHER),
    (False, b"-- Table structure for table `wanted`\n"),
    (True, b"--\nCREATE TABLE `wanted` (\n  `a` int\n);\n"),
    (False, b"-- Dumping data for table `wanted`\n"),
    (True, b"--\n" + LONG),
    (False, b"DELIMITER ;;\n/*!50003 CREATE*/ TRIGGER wanted_in BEFORE INSERT ON wanted FOR EACH ROW BEGIN\n"),
    (False, b"-- Table structure for table `wanted`\nDROP TABLE everything;\nEND */;;\nDELIMITER ;\n"),
    (True, b"/*!50003 SET sql_mode = @saved */ ;\n"),
    (False, b"-- Temporary table structure for view `wanted`\n--\nCREATE VIEW `wanted` AS SELECT 1;\n"),
    (False, b"-- Dumping routines for database 'shop'\n--\nDELIMITER ;;\nCREATE FUNCTION f() BEGIN\n"),
    (False, b"-- Dumping data for table `wanted`\nINSERT INTO wanted VALUES (666);\nEND ;;\nDELIMITER ;\n"),
    (False, b"-- Table structure for table `not wanted`\n--\nCREATE TABLE `not wanted` (\n);\n"),
    (False, b"-- Table structure for table `odd ``name``; \xc3\xa9`\n"),
    (True, b"--\nCREATE TABLE `odd ``name``; \xc3\xa9` (\n  `a` int\n);\n"),
    (False, b"-- Dump completed\n-- django-snapshots: the events follow\n-- MariaDB dump\nCREATE EVENT e;\n"),
    (False, b"-- Dump completed\n"),
]


@pytest.mark.parametrize("size", [1, 7, 1000, 65536, 70_000, 10**9])
def test_only_what_belongs_to_the_tables_and_the_sequences(size: int) -> None:
    dump = b"".join(part for _, part in PARTS)
    read: list[int] = []

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(dump), size):
            read.append(start)
            yield dump[start : start + size]

    excerpt = b"".join(Excerpt(["wanted", "odd `name`; é"])(chunks()))
    assert excerpt == b"".join(part for wanted, part in PARTS if wanted)
    # Only a pass to the end proves the bytes.
    assert len(read) == -(-len(dump) // size)


def test_it_keeps_little_of_a_long_line() -> None:
    longest = 0

    def chunks() -> Iterator[bytes]:
        yield b"-- Dumping data for table `wanted`\nINSERT INTO `wanted` VALUES ('"
        for _ in range(100):
            yield b"x" * 65536
        yield b"');\n"

    for piece in Excerpt(["wanted"])(chunks()):
        longest = max(longest, len(piece))
    assert longest <= 3 * 65536
