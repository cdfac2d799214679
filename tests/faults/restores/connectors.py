"""Connectors that a way needs, by their dotted paths."""

from django_snapshots.connectors.postgres import PostgresConnector

IN_ONE_TRANSACTION = PostgresConnector(strategy="transaction")
