"""PostgreSQL, with or without PostGIS: dumped by ``pg_dump`` as a stream, restored by ``psql`` in one transaction."""

from django_snapshots.connectors.postgres.connector import PostgresConnector

__all__ = ["PostgresConnector"]
