"""Databases of a wanted size that compress about as a shop's do: the same rows on each engine."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

# About 230 bytes a row: numbers, times, names from a small vocabulary, and a token that no compressor shortens.
_COLUMNS = """
    id bigint PRIMARY KEY, customer integer NOT NULL, placed {time} NOT NULL, total numeric(10, 2) NOT NULL,
    state varchar(20) NOT NULL, address varchar(200) NOT NULL, token varchar(64) NOT NULL, note varchar(200)
"""
_POSTGRES_ROWS = """
SELECT n, (n * 7919) %% 100003, timestamptz '2020-01-01' + n * interval '37 seconds', (n %% 100000) / 100.0,
       (ARRAY['new', 'paid', 'packed', 'sent', 'returned'])[1 + n %% 5],
       'Street ' || (n * 31) %% 9973 || ', ' || (n * 17) %% 99991 || ' Town of ' || md5((n %% 5000)::text),
       md5(n::text) || md5((n + 1)::text),
       CASE WHEN n %% 3 = 0 THEN 'Leave it with the neighbour at number ' || n %% 200 || ', please.' END
FROM generate_series(%s::bigint, %s::bigint) AS n
"""
_MARIADB_ROWS = """
SELECT seq, (seq * 7919) % 100003, timestamp '2020-01-01 00:00:00' + INTERVAL seq * 37 SECOND, (seq % 100000) / 100.0,
       elt(1 + seq % 5, 'new', 'paid', 'packed', 'sent', 'returned'),
       concat('Street ', (seq * 31) % 9973, ', ', (seq * 17) % 99991, ' Town of ', md5(seq % 5000)),
       concat(md5(seq), md5(seq + 1)),
       CASE WHEN seq % 3 = 0 THEN concat('Leave it with the neighbour at number ', seq % 200, ', please.') END
FROM seq_{begin}_to_{end}
"""
_SQLITE_ROWS = """
WITH RECURSIVE numbers (n) AS (SELECT :begin UNION ALL SELECT n + 1 FROM numbers WHERE n < :end)
SELECT n, (n * 7919) % 100003, datetime('2020-01-01', (n * 37) || ' seconds'), (n % 100000) / 100.0,
       substr('new  paid packsent back ', 1 + (n % 5) * 5, 5),
       'Street ' || (n * 31) % 9973 || ', ' || (n * 17) % 99991 || ' Town of ' || md5(n % 5000),
       md5(n) || md5(n + 1),
       CASE WHEN n % 3 = 0 THEN 'Leave it with the neighbour at number ' || n % 200 || ', please.' END
FROM numbers
"""
_STEP = 250_000
TABLES = ("bench_order", "bench_order", "bench_order", "bench_line", "bench_line", "bench_payment")
"""The tables in the order in which they get their rows: half of all, a third, and a sixth."""
GIGABYTE = 1_000_000_000


def fill_postgres(cursor: Any, size: int) -> int:
    """Make the tables in the cursor's database and fill them until it has *size* bytes; return its size."""
    for table in dict.fromkeys(TABLES):
        cursor.execute(f"CREATE TABLE {table} ({_COLUMNS.format(time='timestamptz')})")

    def insert(table: str, begin: int, end: int) -> None:
        cursor.execute(f"INSERT INTO {table} {_POSTGRES_ROWS}", [begin, end])

    def measured() -> int:
        cursor.execute("SELECT pg_database_size(current_database())")
        return int(cursor.fetchone()[0])

    _fill(size, insert, measured)
    for table in dict.fromkeys(TABLES):
        cursor.execute(f"CREATE INDEX ON {table} (customer)")
        cursor.execute(f"VACUUM ANALYZE {table}")
    return measured()


def fill_mariadb(cursor: Any, size: int) -> int:
    """As ``fill_postgres``."""
    for table in dict.fromkeys(TABLES):
        cursor.execute(f"CREATE TABLE {table} ({_COLUMNS.format(time='datetime')}, KEY (customer)) ENGINE=InnoDB")

    def insert(table: str, begin: int, end: int) -> None:
        cursor.execute(f"INSERT INTO {table} {_MARIADB_ROWS.format(begin=begin, end=end)}")

    def measured() -> int:
        cursor.execute("ANALYZE TABLE " + ", ".join(dict.fromkeys(TABLES)))
        cursor.fetchall()
        cursor.execute(
            "SELECT sum(data_length + index_length) FROM information_schema.tables WHERE table_schema = database()"
        )
        return int(cursor.fetchone()[0])

    _fill(size, insert, measured)
    return measured()


def fill_sqlite(file: Path, size: int) -> int:
    """As ``fill_postgres``, into *file*, in WAL mode as a busy site has it."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.create_function("md5", 1, lambda value: hashlib.md5(str(value).encode()).hexdigest())
    connection.execute("PRAGMA journal_mode = WAL")
    for table in dict.fromkeys(TABLES):
        connection.execute(f"CREATE TABLE {table} ({_COLUMNS.format(time='text')})")
        connection.execute(f"CREATE INDEX {table}_customer ON {table} (customer)")

    def insert(table: str, begin: int, end: int) -> None:
        connection.execute(f"INSERT INTO {table} {_SQLITE_ROWS}", {"begin": begin, "end": end})

    def measured() -> int:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return file.stat().st_size

    _fill(size, insert, measured)
    connection.close()
    return file.stat().st_size


def _fill(size: int, insert: Callable[[str, int, int], None], measured: Callable[[], int]) -> None:
    begin, turn = 1, 0
    while measured() < size:
        insert(TABLES[turn % len(TABLES)], begin, begin + _STEP - 1)
        begin += _STEP
        turn += 1
