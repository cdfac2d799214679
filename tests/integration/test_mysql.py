"""MariaDB: dumped and restored, and compared by the engine's own dump."""

from __future__ import annotations

from django_snapshots.connectors.mysql import MySQLConnector
from django_snapshots.connectors.protocols import DatabaseConnector, StreamingConnector
from tests.databases import Maker
from tests.integration.mysql_support import (
    bare_dump,
    client,
    dump,
    load_schema,
    restore,
    source,
)
from tests.services import Server

LATER = b"""
CREATE TABLE came_later (id INTEGER);
CREATE VIEW later_view AS SELECT * FROM came_later;
CREATE PROCEDURE later_procedure() SELECT 1;
CREATE FUNCTION later_function() RETURNS INTEGER RETURN 1;
CREATE EVENT later_event ON SCHEDULE EVERY 1 DAY DO SELECT 1;
CREATE SEQUENCE later_sequence;
CREATE TRIGGER later_trigger BEFORE INSERT ON empty_table FOR EACH ROW SET NEW.id = 1;
INSERT INTO hen VALUES (77, NULL, NULL);
DROP VIEW a_view_on_views;
DROP TABLE every_type;
ALTER TABLE partitioned ADD COLUMN later INTEGER;
"""


def test_is_a_connector_of_both_tiers() -> None:
    assert isinstance(MySQLConnector(), DatabaseConnector)
    assert isinstance(MySQLConnector(), StreamingConnector)


def test_a_schema_that_hurts_comes_back_as_it_was(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    load_schema(mariadb, alias)
    before = bare_dump(mariadb, alias)
    content, metadata = dump(alias)
    client(mariadb, alias, script=LATER)
    assert bare_dump(mariadb, alias) != before

    restore(alias, source(content, metadata))

    assert bare_dump(mariadb, alias) == before


def test_goes_into_another_database_of_another_name(make_mariadb: Maker, mariadb: Server) -> None:
    alias, other = make_mariadb(), make_mariadb(NAME="other `name. é %")
    load_schema(mariadb, alias)
    content, metadata = dump(alias)

    restore(other, source(content, metadata))

    assert bare_dump(mariadb, other) == bare_dump(mariadb, alias)
