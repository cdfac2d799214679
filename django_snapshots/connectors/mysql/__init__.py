"""MySQL and MariaDB, by their own dump tool and client.

``options`` writes the private option file, ``client`` finds the programs, ``server`` and ``rights`` ask the server,
``moment`` fixes the dump's moment and counts rows in it, ``dump`` writes it.

For a restore ``findings`` and ``preflight`` say what is in the way, ``scan`` reads a dump before it is executed,
``rehearsed`` and ``load`` put it into a schema beside the target, ``exchange`` exchanges the two by its ``record``,
with ``definitions`` of triggers, views, routines and events; ``kept`` finds, ends and removes what restores have left;
``restore`` puts it all in order.
"""

from django_snapshots.connectors.mysql.connector import MySQLConnector

__all__ = ["MySQLConnector"]
