"""A database of a wanted size that compresses about as a shop's does."""

from __future__ import annotations

from typing import Any

# About 230 bytes a row: numbers, times, names from a small vocabulary, and a token that no compressor shortens.
_TABLE = """
CREATE TABLE bench_order (
    id bigint PRIMARY KEY, customer integer NOT NULL, placed timestamptz NOT NULL, total numeric(10, 2) NOT NULL,
    state text NOT NULL, address text NOT NULL, token text NOT NULL, note text
)
"""
_ROWS = """
INSERT INTO bench_order
SELECT n, (n * 7919) %% 100003, timestamptz '2020-01-01' + n * interval '37 seconds', (n %% 100000) / 100.0,
       (ARRAY['new', 'paid', 'packed', 'sent', 'returned'])[1 + n %% 5],
       'Street ' || (n * 31) %% 9973 || ', ' || (n * 17) %% 99991 || ' Town of ' || md5((n %% 5000)::text),
       md5(n::text) || md5((n + 1)::text),
       CASE WHEN n %% 3 = 0 THEN 'Leave it with the neighbour at number ' || n %% 200 || ', please.' END
FROM generate_series(%s::bigint, %s::bigint) AS n
"""
_STEP = 500_000
GIGABYTE = 1_000_000_000


def fill(cursor: Any, size: int) -> int:
    """Make a table in the cursor's database and fill it until the database has *size* bytes; return its size."""
    cursor.execute(_TABLE)
    begin, now = 1, 0
    while now < size:
        cursor.execute(_ROWS, [begin, begin + _STEP - 1])
        begin += _STEP
        cursor.execute("SELECT pg_database_size(current_database())")
        now = cursor.fetchone()[0]
    cursor.execute("CREATE INDEX ON bench_order (customer)")
    cursor.execute("VACUUM ANALYZE bench_order")
    cursor.execute("SELECT pg_database_size(current_database())")
    return int(cursor.fetchone()[0])
