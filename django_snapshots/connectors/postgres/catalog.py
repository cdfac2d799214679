"""Questions to PostgreSQL's catalogs, each in the transaction of the connection that it is asked on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

USER_SCHEMA = "n.nspname !~ '^pg_(toast|temp_|catalog$)' AND n.nspname <> 'information_schema'"
"""True for a schema *n* that isn't PostgreSQL's own."""

COUNTED_TABLES = f"""
SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND NOT (c.relpersistence = 'u' AND pg_catalog.pg_is_in_recovery())
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                  AND d.objid = c.oid AND d.deptype = 'e')
"""  # noqa: S608 - made of constants
"""Every table that holds rows of its own: plain tables and partitions, without those of an extension."""

REROUTED = """
SELECT json_object_agg(format('%I.%I', n.nspname, c.relname), format('%I.%I', m.nspname, r.relname))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class r ON r.oid = pg_catalog.pg_partition_root(c.oid)
JOIN pg_catalog.pg_namespace m ON m.oid = r.relnamespace
WHERE c.relkind = 'r' AND c.relispartition AND EXISTS (
    SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a (relid)
    JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = a.relid
    JOIN pg_catalog.pg_opclass o ON o.oid = ANY (p.partclass)
    WHERE p.partstrat = 'h' AND o.opcname = 'enum_ops' AND o.opcnamespace = 'pg_catalog'::pg_catalog.regnamespace)
"""
"""The partitions, each with its topmost ancestor, whose rows a restore distributes anew: which one a row belongs to is
told by the hash of an enum, which is another one in each database. By the same rule ``pg_dump`` has such rows loaded
through the ancestor."""

_NAME = re.compile(r'"((?:[^"]|"")*)"|([^".]+)')


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server and database behind a connection."""

    version: str
    """As the server says it, for example ``15.18 (Debian 15.18-0+deb12u1)``."""
    database: str
    encoding: str
    identity: str
    """The cluster and the database's name; equal for the twin that a physical copy of the cluster is."""


def rows(connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """Every row that *sql* gives."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def server(connection: BaseDatabaseWrapper) -> Server:
    """Ask what stands behind *connection*."""
    ((version, database, encoding),) = rows(
        connection,
        "SELECT current_setting('server_version'), current_database(), current_setting('server_encoding')",
    )
    return Server(
        version=version, database=database, encoding=encoding, identity=identity(cluster(connection), database)
    )


def identity(cluster: str, database: str) -> str:
    """What a database is: not its oid, which another one has after a restore that took its name."""
    return f"postgresql:{cluster}:{database}"


def cluster(connection: BaseDatabaseWrapper) -> str:
    """The cluster's system identifier, the same through whatever address it is asked."""
    ((allowed,),) = rows(connection, "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
    # Where the right was taken away, the microsecond of the server's start tells two servers apart; a restart, which
    # ends everything that works on them, changes it.
    sql = "SELECT system_identifier::text FROM pg_control_system()"
    fallback = "SELECT 'started ' || extract(epoch FROM pg_postmaster_start_time())::text"
    return str(rows(connection, sql if allowed else fallback)[0][0])


def moment(connection: BaseDatabaseWrapper) -> datetime:
    """When the connection's transaction began."""
    ((seconds,),) = rows(connection, "SELECT extract(epoch FROM transaction_timestamp())::float8")
    return datetime.fromtimestamp(seconds, UTC)


def extensions(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Installed extensions with their versions."""
    return dict(rows(connection, "SELECT extname, extversion FROM pg_extension ORDER BY extname"))


def row_counts(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> dict[str, int]:
    """Number of rows of every table but those with the oids in *exclude*; children don't count for their parents."""
    names = counted_tables(connection, exclude).values()
    return {name: rows(connection, f"SELECT count(*) FROM ONLY {name}")[0][0] for name in names}  # noqa: S608


def rerouted(connection: BaseDatabaseWrapper) -> Mapping[str, str]:
    """What ``REROUTED`` gives."""
    ((found,),) = rows(connection, REROUTED)
    return decoded(found) or {}


def counted_tables(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> dict[int, str]:
    """Oid and quoted name of every table that holds rows of its own, but for those with the oids in *exclude*."""
    return dict(rows(connection, f"{COUNTED_TABLES} AND c.oid <> ALL(%s::oid[]) ORDER BY 2", [list(exclude)]))


def foreign_tables(connection: BaseDatabaseWrapper) -> list[str]:
    """Quoted names of the tables whose rows are another server's."""
    sql = f"""
        SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'f' AND {USER_SCHEMA} ORDER BY 1
    """  # noqa: S608 - made of constants
    return [name for (name,) in rows(connection, sql)]


def find_tables(connection: BaseDatabaseWrapper, names: Iterable[str]) -> dict[int, str]:
    """Oid and quoted name of those *names*, unquoted and without schema, that Django would find here."""
    sql = """
        SELECT c.oid, format('%%I.%%I', n.nspname, c.relname)
        FROM unnest(%s::text[]) AS wanted JOIN pg_class c ON c.oid = to_regclass(quote_ident(wanted))
        JOIN pg_namespace n ON n.oid = c.relnamespace
    """
    return dict(rows(connection, sql, [sorted(names)]))


def numbers(connection: BaseDatabaseWrapper, names: Iterable[str]) -> list[int]:
    """The oids of the relations *names*, quoted with their schema, as far as there are any."""
    sql = "SELECT to_regclass(name)::oid::bigint FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
    return [int(number) for (number,) in rows(connection, sql, [sorted(names)])]


def owned_sequences(connection: BaseDatabaseWrapper, tables: Iterable[int]) -> dict[int, str]:
    """Oid and quoted name of the sequences that belong to a column of *tables*."""
    sql = """
        SELECT c.oid, format('%%I.%%I', n.nspname, c.relname)
        FROM pg_depend d JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.deptype IN ('a', 'i') AND c.relkind = 'S' AND d.refobjid = ANY(%s::oid[])
    """
    return dict(rows(connection, sql, [list(tables)]))


def dependents(connection: BaseDatabaseWrapper, tables: Iterable[int]) -> list[str]:
    """Foreign keys and views elsewhere that can't be restored without *tables*, in words."""
    sql = """
        SELECT format('foreign key %%I of %%s', k.conname, k.conrelid::regclass) FROM pg_constraint k
        WHERE k.contype = 'f' AND k.confrelid = ANY(%(oids)s::oid[]) AND k.conrelid <> ALL(%(oids)s::oid[])
        UNION
        SELECT format('view %%s', r.ev_class::regclass) FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.refobjid = ANY(%(oids)s::oid[]) AND r.ev_class <> ALL(%(oids)s::oid[])
        ORDER BY 1
    """
    with connection.cursor() as cursor:
        cursor.execute(sql, {"oids": list(tables)})
        return [item for (item,) in cursor.fetchall()]


def pointers(connection: BaseDatabaseWrapper, tables: Iterable[int]) -> list[str]:
    """Foreign keys of other tables that point at *tables*, in words."""
    sql = """
        SELECT format('%%I of %%s', k.conname, k.conrelid::regclass) FROM pg_constraint k WHERE k.contype = 'f'
          AND k.confrelid = ANY(%(oids)s::oid[]) AND k.conrelid <> ALL(%(oids)s::oid[])
    """
    with connection.cursor() as cursor:
        cursor.execute(sql, {"oids": list(tables)})
        return [item for (item,) in cursor.fetchall()]


def unreadable(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> list[str]:
    """Schemas, tables and sequences that this role may not read, quoted, each with the kind before it."""
    sql = f"""
        WITH mine AS (
            SELECT c.oid, c.relkind, n.oid AS schema, n.nspname, format('%%I.%%I', n.nspname, c.relname) AS name
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND {USER_SCHEMA}
              AND c.oid <> ALL(%s::oid[]) AND NOT EXISTS (SELECT FROM pg_depend d WHERE
                  d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
        SELECT DISTINCT format('SCHEMA %%I', nspname) FROM mine WHERE NOT has_schema_privilege(schema, 'USAGE')
        UNION SELECT CASE WHEN relkind = 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || name FROM mine
        WHERE NOT CASE WHEN relkind = 'S' THEN has_sequence_privilege(oid, 'SELECT')
                       ELSE has_table_privilege(oid, 'SELECT') END
        ORDER BY 1
    """  # noqa: S608
    return [item for (item,) in rows(connection, sql, [list(exclude)])]


def unreadable_large_objects(connection: BaseDatabaseWrapper) -> list[int]:
    """The numbers of the large objects that this role may not read."""
    ((asks_by_itself,),) = rows(
        connection, "SELECT to_regproc('pg_catalog.has_largeobject_privilege') IS NOT NULL"
    )  # from version 18 on
    may = "has_largeobject_privilege(m.oid, 'SELECT')" if asks_by_itself else _MAY_READ_LARGE_OBJECT
    sql = f"""
        SELECT m.oid::bigint FROM pg_largeobject_metadata m
        WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT {may}
          AND current_setting('lo_compat_privileges') = 'off' ORDER BY 1
    """  # noqa: S608 - made of constants
    return [int(number) for (number,) in rows(connection, sql)]


_MAY_READ_LARGE_OBJECT = """
    EXISTS (SELECT FROM aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) a WHERE a.privilege_type = 'SELECT'
            AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
"""


def large_objects(connection: BaseDatabaseWrapper) -> int:
    """How many there are."""
    ((number,),) = rows(connection, "SELECT count(*) FROM pg_largeobject_metadata")
    return int(number)


def subscriptions(connection: BaseDatabaseWrapper) -> list[str]:
    """Quoted names of the subscriptions of this database."""
    sql = """
        SELECT quote_ident(s.subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
        WHERE d.datname = current_database() ORDER BY 1
    """
    return [name for (name,) in rows(connection, sql)]


def hidden_user_mappings(connection: BaseDatabaseWrapper) -> list[str]:
    """User mappings of which this role sees that they are there, and not with which options; in words."""
    # As the view pg_user_mappings decides.
    sql = """
        SELECT format('%s for server %I', CASE WHEN m.umuser = 0 THEN 'PUBLIC' ELSE quote_ident(m.usename) END,
            m.srvname)
        FROM pg_user_mappings m JOIN pg_foreign_server s ON s.oid = m.srvid
        WHERE m.umoptions IS NULL AND NOT (
            m.umuser <> 0 AND m.usename = current_user
                AND (pg_has_role(s.srvowner, 'USAGE') OR has_server_privilege(s.oid, 'USAGE'))
            OR m.umuser = 0 AND pg_has_role(s.srvowner, 'USAGE')
            OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
        ORDER BY 1
    """
    return [item for (item,) in rows(connection, sql)]


def roles(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> dict[str, list[str]]:
    """The roles that what is in this database needs, without the server's first superuser: ``given``, those that own
    something or were granted something; ``named``, those that a policy or a user mapping is for."""
    sql = """
        SELECT DISTINCT r.rolname::text, d.deptype = 'r' OR d.classid = 'pg_user_mapping'::regclass
        FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
        WHERE d.refclassid = 'pg_authid'::regclass
          AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND d.classid <> 'pg_subscription'::regclass
          AND NOT (d.classid = 'pg_class'::regclass AND (d.objid = ANY(%s::oid[]) OR EXISTS (
              SELECT FROM pg_class c WHERE c.oid = d.objid AND c.relpersistence = 't')))
        ORDER BY 1
    """
    found = rows(connection, sql, [list(exclude)])
    return {
        "given": [name for name, named in found if not named],
        "named": [name for name, named in found if named],
    }


def forced_policies(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> list[str]:
    """Quoted names of the tables whose row-level security is for their owner, too."""
    sql = f"""
        SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relrowsecurity AND c.relforcerowsecurity AND {USER_SCHEMA} AND c.oid <> ALL(%s::oid[]) ORDER BY 1
    """  # noqa: S608 - made of constants
    return [name for (name,) in rows(connection, sql, [list(exclude)])]


def hidden_by_policies(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> list[str]:
    """Tables of which row-level security shows this role only a part."""
    sql = """
        SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relrowsecurity AND c.oid <> ALL(%s::oid[]) AND row_security_active(c.oid) ORDER BY 1
    """
    return [item for (item,) in rows(connection, sql, [list(exclude)])]


def not_lockable(connection: BaseDatabaseWrapper, exclude: Iterable[int] = ()) -> list[str]:
    """Tables that this role may not lock against writers, quoted."""
    sql = f"""
        SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition AND {USER_SCHEMA}
          AND c.oid <> ALL(%s::oid[]) AND NOT has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                          AND d.deptype = 'e')
        ORDER BY 1
    """  # noqa: S608
    return [item for (item,) in rows(connection, sql, [list(exclude)])]


def holders(connection: BaseDatabaseWrapper) -> list[str]:
    """Other sessions that hold a lock on something in this database, in words."""
    sql = """
        SELECT DISTINCT format('process %s (%s, %s)', a.pid,
            coalesce(nullif(a.application_name, ''), 'unnamed'), coalesce(a.state, 'state not visible'))
        FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.granted AND l.relation IS NOT NULL AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY 1 LIMIT 10
    """
    return [item for (item,) in rows(connection, sql)]


def decoded(value: Any) -> Any:
    """A JSON value, which Django's connections give as text."""
    return json.loads(value) if isinstance(value, str | bytes) else value


def sessions_in(connection: BaseDatabaseWrapper, database: int | None, pids: Sequence[int] | None = None) -> list[str]:
    """The sessions in the database of this number, or those of them with *pids*, in words; no workers of autovacuum."""
    sql = """
        SELECT format('process %%s (%%s, role %%s)', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'),
            coalesce(a.usename::text, 'none'))
        FROM pg_stat_activity a
        WHERE a.datid = %s::text::oid AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
          AND (%s::int[] IS NULL OR a.pid = ANY(%s::int[])) ORDER BY a.pid LIMIT 10
    """
    wanted = None if pids is None else list(pids)
    return [item for (item,) in rows(connection, sql, [str(database), wanted, wanted])]


HOW_TO_END = (
    "End them, or let a superuser GRANT pg_signal_backend to the role; a superuser's session can only be ended by a "
    "superuser."
)
"""What helps against sessions that the role may not end."""


def terminate(connection: BaseDatabaseWrapper, pid: int) -> bool:
    """Tell a session to end; ``False`` if the role may not."""
    try:
        rows(connection, "SELECT pg_terminate_backend(%s)", [pid])
    except Error as error:
        if state_of(error) != "42501":  # insufficient_privilege
            raise
        return False
    return True


def state_of(error: BaseException) -> str:
    """The server's five letters for an error."""
    return str(getattr(error.__cause__, "sqlstate", None) or "")


def pattern(name: str) -> str:
    """A pattern that matches this one name: inside double quotes nothing is special to ``pg_dump``."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in split_name(name))


def split_name(name: str) -> tuple[str, ...]:
    """The parts of a quoted name, unquoted: which words need quotes differs between versions."""
    return tuple(match[1].replace('""', '"') if match[1] is not None else match[2] for match in _NAME.finditer(name))


def counted(lines: Iterable[str]) -> Mapping[str, int]:
    """What the lines ``"name as JSON" number`` say."""
    pairs = (line.rsplit(" ", 1) for line in lines)
    return {json.loads(name): int(number) for name, number in pairs}
