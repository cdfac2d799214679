"""What names the dumped database is made fit for the schema that rehearses, however the stream is cut."""

from __future__ import annotations

import pytest

from django_snapshots.connectors.mysql.rehearsed import Rehearsal, enabled
from django_snapshots.exceptions import SnapshotPreflightError

DUMP = b"""CREATE TABLE `t` (
  `id` int(11) DEFAULT nextval(`old`.`s`) COMMENT 'nextval(x)',
  `other` int(11)
);
INSERT INTO `t` VALUES (1,'  `x` DEFAULT nextval(`old`.`s`)'),(2,'ALTER DATABASE `old`');
ALTER DATABASE `old` CHARACTER SET latin1 COLLATE latin1_bin ;
"""
EVENT = b"/*!50106 CREATE*/ /*!50117 DEFINER=`a`@`%`*/ /*!50106 EVENT "
DUMP += EVENT + b"`x ON SCHEDULE ``y` ON SCHEDULE EVERY 1 DAY ON COMPLETION NOT PRESERVE ENABLE "
DUMP += b"COMMENT ' ON COMPLETION PRESERVE ENABLE' DO BEGIN\n  ALTER TABLE t; END */ ;;\n"
DUMP += EVENT + b"`off` ON SCHEDULE AT '2037-01-01 00:00:00' ON COMPLETION PRESERVE DISABLE DO SELECT 1 */ ;;\n"
LONG = b"INSERT INTO `t` VALUES ('" + b"x" * 200_000 + b"');\n"
WANTED = (
    DUMP.replace(b"DEFAULT nextval(`old`.`s`) COMMENT", b"DEFAULT nextval(`new`.`s`) COMMENT")
    .replace(b"ALTER DATABASE `old` ", b"ALTER DATABASE `new` ")
    .replace(b"NOT PRESERVE ENABLE", b"NOT PRESERVE DISABLE")
)


@pytest.mark.parametrize("size", [1, 7, 64, 4096, 65536, 10**6])
def test_however_it_is_cut(size: int) -> None:
    whole = DUMP + LONG + DUMP
    rehearsal = Rehearsal("new")
    done = b"".join(rehearsal(whole[start : start + size] for start in range(0, len(whole), size)))
    assert done == WANTED + LONG + WANTED
    assert rehearsal.enabled == {"x ON SCHEDULE `y"}


def test_an_event_gets_its_status_back() -> None:
    text = b"CREATE DEFINER=`a`@`%` EVENT `e` ON SCHEDULE EVERY 1 DAY ON COMPLETION PRESERVE DISABLE DO SELECT 1"
    assert enabled(text) == text.replace(b"DISABLE", b"ENABLE")


def test_an_event_of_another_form_is_refused() -> None:
    with pytest.raises(SnapshotPreflightError, match="could fire while the dump is loaded"):
        list(Rehearsal("new")(iter([b"/*!50106 CREATE*/ EVENT `e` ON SCHEDULE EVERY 1 DAY DO SELECT 1;\n"])))
