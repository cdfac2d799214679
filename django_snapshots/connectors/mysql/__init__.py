"""MySQL and MariaDB, by their own dump tool and client.

``options`` writes the private option file, ``client`` finds the programs, ``server`` and ``rights`` ask the server,
``moment`` fixes the dump's moment and counts rows in it, ``dump`` and ``restore`` do the work, ``scan`` reads a dump
before it is executed.
"""

from django_snapshots.connectors.mysql.connector import MySQLConnector

__all__ = ["MySQLConnector"]
