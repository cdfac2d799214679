"""Which rights an account has, and what to grant where one is missing.

Asked before anything is dumped: without them the dump tool leaves views, triggers, routines and events out and exits
with 0, because it does not see them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.server import Server, names, quote, rows, value
from django_snapshots.exceptions import SnapshotConnectorError

_NAME = r"(?:\*|`(?:[^`]|``)*`)"
_GRANT = re.compile(
    rf"^(?P<verb>GRANT|REVOKE) (?P<rights>.+?) ON (?P<database>{_NAME})\.(?P<table>{_NAME}) (?:TO|FROM) "
)
_COLUMN_RIGHT = re.compile(r"[A-Z ]+\([^)]*\)")
_EVERYTHING = frozenset({"ALL PRIVILEGES", "ALL"})
_TO_DUMP = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT")
_TO_RESTORE = (
    "SELECT", "INSERT", "CREATE", "DROP", "ALTER", "INDEX", "REFERENCES", "LOCK TABLES", "CREATE VIEW", "SHOW VIEW",
    "TRIGGER", "EVENT", "CREATE ROUTINE", "ALTER ROUTINE",
)  # fmt: skip
_FOR_ROWS = ("SELECT", "INSERT", "DELETE", "LOCK TABLES", "TRIGGER")
_SEES_ROUTINES = ("EXECUTE", "ALTER ROUTINE", "CREATE ROUTINE")
_SETS_DEFINERS = ("SUPER", "SET USER", "SET_USER_ID", "SET_ANY_DEFINER")
_TRUSTED_CREATORS = ("SUPER", "BINLOG ADMIN")


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What an account may do with one database."""

    account: str
    """The account that the server took the login for, as ``user@host``."""
    everywhere: frozenset[str]
    here: frozenset[str]
    """On the database or everywhere; a right on single tables is not one, the others stay invisible."""
    on_routine_bodies: bool
    """Whether ``mysql.proc``, where MariaDB keeps routines, may be read."""

    def has(self, right: str) -> bool:
        return right in self.here or bool(_EVERYTHING & self.here)

    def has_everywhere(self, *rights: str) -> bool:
        return bool(self.everywhere & {*rights, *_EVERYTHING})


def read_rights(connection: BaseDatabaseWrapper, server: Server) -> Rights:
    """Read the account's grants, those of its enabled roles included."""
    everywhere: set[str] = set()
    here: set[str] = set()
    bodies = False
    fold = bool(value(connection, "SELECT @@lower_case_table_names"))
    for text in _grant_lines(connection, server):
        if not (match := _GRANT.match(text)):
            continue
        found = set(_rights(match["rights"]))
        if match["verb"] == "REVOKE":
            # MySQL's partial revokes take away for one database what was granted for all; they come last.
            here -= found if _matches(match["database"], server.database, fold) else set()
        elif match["table"] == "*":
            everywhere |= found if match["database"] == "*" else set()
            here |= found if _matches(match["database"], server.database, fold) else set()
        bodies = bodies or _reads_bodies(match, found)
    account = str(value(connection, "SELECT CURRENT_USER()"))
    return Rights(account=account, everywhere=frozenset(everywhere), here=frozenset(here), on_routine_bodies=bodies)


def require_dump_rights(connection: BaseDatabaseWrapper, server: Server, rights: Rights, db_alias: str) -> None:
    """Raise ``SnapshotConnectorError`` that names every right that a whole dump needs and this account lacks."""
    missing = [right for right in _TO_DUMP if not rights.has(right)]
    if missing:
        raise SnapshotConnectorError(
            f"{db_alias!r} can't be dumped whole: {rights.account} lacks {', '.join(missing)} on {server.database}, "
            f"and the dump would leave out what needs it without a word. Run: {grant(missing, server, rights)}"
        )
    hidden = hidden_routines(connection, rights)
    if hidden is not None:
        raise SnapshotConnectorError(
            f"{db_alias!r} can't be dumped whole: {rights.account} can't read {hidden}, and the dump would leave them "
            f"out without a word. Run: {_routine_grant(server, rights)}"
        )


def hidden_routines(connection: BaseDatabaseWrapper, rights: Rights) -> str | None:
    """Say in words which routines the account can't read, or ``None`` if it reads them all."""
    # ALL PRIVILEGES on the database is not enough before MariaDB 11.3, where it came to hold SHOW CREATE ROUTINE.
    named = "SHOW CREATE ROUTINE" in rights.here
    if named or rights.on_routine_bodies or rights.has_everywhere("SELECT", "SHOW_ROUTINE"):
        return None
    if not any(rights.has(right) for right in _SEES_ROUTINES):
        return "procedures and functions, or whether there are any"
    unreadable = names(
        connection,
        "SELECT routine_name FROM information_schema.routines "
        "WHERE routine_schema = DATABASE() AND routine_definition IS NULL ORDER BY 1",
    )
    return f"the text of {', '.join(unreadable)}" if unreadable else None


def missing_to_restore(rights: Rights) -> list[str]:
    """The rights that a restore needs on the database and this account lacks."""
    return [right for right in _TO_RESTORE if not rights.has(right)]


def missing_for_rows(rights: Rights) -> list[str]:
    """The rights on the database that replacing the rows of single tables needs and this account lacks."""
    return [right for right in _FOR_ROWS if not rights.has(right)]


def missing_beside(rights: Rights) -> list[str]:
    """The rights that a restore needs on a schema of its own and this account lacks; its record is written anew."""
    return [right for right in ("SELECT", "INSERT", "DELETE", *_TO_RESTORE[2:]) if not rights.has(right)]


def may_set_definers(rights: Rights) -> bool:
    """Whether the account may create a view or routine that runs as somebody else."""
    return rights.has_everywhere(*_SETS_DEFINERS)


def may_create_functions(connection: BaseDatabaseWrapper, rights: Rights) -> bool:
    """Whether the binary log lets the account create functions and triggers."""
    logged, trusted = rows(connection, "SELECT @@log_bin, @@log_bin_trust_function_creators")[0]
    return not logged or bool(trusted) or rights.has_everywhere(*_TRUSTED_CREATORS)


def grant(missing: Iterable[str], server: Server, rights: Rights) -> str:
    """The statement that an administrator runs to give *missing* on the database."""
    database = re.sub(r"([_%])", r"\\\1", server.database)
    return f"GRANT {', '.join(missing)} ON {quote(database)}.* TO {account(rights)};"


def account(rights: Rights) -> str:
    """The account as a GRANT names it."""
    user, _, host = rights.account.rpartition("@")
    return f"{quote(user)}@{quote(host)}"


def _routine_grant(server: Server, rights: Rights) -> str:
    if not server.mariadb:
        return f"GRANT SHOW_ROUTINE ON *.* TO {account(rights)};"
    if server.number >= (11, 3):
        return grant(["SHOW CREATE ROUTINE"], server, rights)
    return f"GRANT SELECT ON mysql.proc TO {account(rights)};"


def _grant_lines(connection: BaseDatabaseWrapper, server: Server) -> Iterator[str]:
    role = value(connection, "SELECT CURRENT_ROLE()")
    if server.mariadb:
        yield from names(connection, "SHOW GRANTS")
        if role and role != "NONE":
            yield from names(connection, "SHOW GRANTS FOR CURRENT_ROLE")
    elif role and role != "NONE":
        yield from names(connection, f"SHOW GRANTS FOR CURRENT_USER() USING {role}")
    else:
        yield from names(connection, "SHOW GRANTS FOR CURRENT_USER()")


def _rights(text: str) -> Iterator[str]:
    for right in _COLUMN_RIGHT.sub("", text).split(","):
        yield right.strip()


def _reads_bodies(match: re.Match[str], found: set[str]) -> bool:
    return (
        match["verb"] == "GRANT"
        and match["database"] == "`mysql`"
        and match["table"] in ("*", "`proc`")
        and bool(found & {"SELECT", *_EVERYTHING})
    )


def _matches(pattern: str, database: str, fold: bool) -> bool:
    """Whether a grant's database, in which ``%`` and ``_`` stand for anything unless escaped, is *database*."""
    if pattern == "*":
        return True
    parts = re.findall(r"\\.|.", pattern[1:-1].replace("``", "`"), re.DOTALL)
    wild = {"%": ".*", "_": "."}
    expression = "".join(wild.get(part, re.escape(part[-1])) for part in parts)
    return re.fullmatch(expression, database, re.DOTALL | (re.IGNORECASE if fold else 0)) is not None
