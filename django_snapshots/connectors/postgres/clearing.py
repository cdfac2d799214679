"""Removes everything from a database, inside a transaction, but what a restore leaves alone.

Left alone: preserved tables with their sequences, installed extensions with their members and the schemas that these
live in, subscriptions, and event triggers of other roles. Each query gives statements, which ``psql`` runs by
``\\gexec``. What an earlier one took along by CASCADE is gone when its own statement comes, hence IF EXISTS everywhere.

What has rows is removed only if it was *seen* before the safety copy: what a client has made since is in no copy.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres.catalog import USER_SCHEMA, rows


def _member(catalog: str, oid: str) -> str:
    """True for an object that belongs to an extension."""
    return (
        f"EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass "
        f"AND d.objid = {oid} AND d.deptype = 'e')"
    )


def _part(catalog: str, oid: str) -> str:
    """True for an object that belongs to an extension or only exists as a part of another one.

    A partitioned table depends in that way on itself, by the columns of its key.
    """
    return (
        f"EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = {oid} "
        "AND (d.deptype = 'e' OR d.deptype = 'i' AND (d.refclassid, d.refobjid) <> (d.classid, d.objid)))"
    )


_KEPT_SCHEMAS = f"""
SELECT n.oid FROM pg_namespace n WHERE {USER_SCHEMA} AND (
    n.nspname = 'public' OR {_member("pg_namespace", "n.oid")}
    OR EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid)
    OR EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid
               AND (c.oid = ANY(:'kept'::oid[]) OR {_member("pg_class", "c.oid")}))
    OR EXISTS (SELECT FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
               WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND p.pronamespace = n.oid)
    OR EXISTS (SELECT FROM pg_depend d JOIN pg_type t ON t.oid = d.objid
               WHERE d.classid = 'pg_type'::regclass AND d.deptype = 'e' AND t.typnamespace = n.oid))
"""  # noqa: S608

_EVENT_TRIGGERS = f"""
SELECT format('DROP EVENT TRIGGER IF EXISTS %I CASCADE', evtname) FROM pg_event_trigger t
WHERE pg_has_role(evtowner, 'USAGE') AND NOT {_member("pg_event_trigger", "t.oid")}
"""  # noqa: S608

_PUBLICATIONS = "SELECT format('DROP PUBLICATION IF EXISTS %I CASCADE', pubname) FROM pg_publication"

# Behind all that may be in one, and without CASCADE: else it would take along a table that somebody makes just now.
_SCHEMAS = f"""
SELECT format('DROP SCHEMA IF EXISTS %I', n.nspname) FROM pg_namespace n
WHERE {USER_SCHEMA} AND n.oid NOT IN ({_KEPT_SCHEMAS})
"""  # noqa: S608

_IN_SCHEMAS = (
    # catalog, column of the schema, what to drop; tables before the types and functions that they use
    ("pg_class", "relnamespace", "o.relkind IN ('r', 'p') AND o.oid IN (SELECT unnest(:'seen'::oid[]))"),
    # Behind the tables, which take along what depends on them, also if it is another role's.
    ("pg_class", "relnamespace", "o.relkind IN ('v', 'm', 'f') AND o.oid <> ALL(:'kept'::oid[])"),
    ("pg_class", "relnamespace", "o.relkind = 'S' AND o.oid <> ALL(:'kept'::oid[])"),
    ("pg_statistic_ext", "stxnamespace", "true"),
    ("pg_opclass", "opcnamespace", "true"),
    ("pg_opfamily", "opfnamespace", "true"),
    ("pg_operator", "oprnamespace", "true"),
    ("pg_proc", "pronamespace", "true"),
    (
        "pg_type",
        "typnamespace",
        "(o.typrelid = 0 OR EXISTS (SELECT FROM pg_class c WHERE c.oid = o.typrelid AND c.relkind = 'c'))",
    ),
    ("pg_collation", "collnamespace", "true"),
    ("pg_conversion", "connamespace", "true"),
    ("pg_ts_config", "cfgnamespace", "true"),
    ("pg_ts_dict", "dictnamespace", "true"),
    ("pg_ts_parser", "prsnamespace", "true"),
    ("pg_ts_template", "tmplnamespace", "true"),
)

_OUTSIDE_SCHEMAS = ("pg_cast", "pg_transform", "pg_foreign_server", "pg_foreign_data_wrapper", "pg_language", "pg_am")


def _in_schema(catalog: str, column: str, condition: str) -> str:
    kind = "'ROUTINE'" if catalog == "pg_proc" else "replace(i.type, ' object', '')"  # "statistics object"
    return f"""
        SELECT format('DROP %s IF EXISTS %s CASCADE', {kind}, i.identity)
        FROM {catalog} o JOIN pg_namespace n ON n.oid = o.{column},
             LATERAL pg_identify_object('{catalog}'::regclass, o.oid, 0) i
        WHERE {USER_SCHEMA} AND {condition} AND NOT {_part(catalog, "o.oid")}
    """  # noqa: S608


def _outside_schemas(catalog: str) -> str:
    # Oids below 16384 are PostgreSQL's own (access/transam.h, FirstNormalObjectId).
    return f"""
        SELECT format('DROP %s IF EXISTS %s CASCADE', replace(i.type, '-', ' '), i.identity)
        FROM {catalog} o, LATERAL pg_identify_object('{catalog}'::regclass, o.oid, 0) i
        WHERE o.oid >= 16384 AND NOT {_part(catalog, "o.oid")}
    """  # noqa: S608


# All that loses rows: tables of users, and those of an extension that have rows of a user's own.
_LOSING = f"""
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {USER_SCHEMA} AND c.oid <> ALL(:'kept'::oid[])
    AND (c.oid IN (SELECT unnest(extconfig) FROM pg_extension) OR NOT {_member("pg_class", "c.oid")})
"""  # noqa: S608

LOCK = f"""
SELECT format('LOCK TABLE %I.%I IN EXCLUSIVE MODE', n.nspname, c.relname) {_LOSING}
    AND NOT c.relispartition AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')
ORDER BY c.oid \\gexec
"""
"""Keeps everybody from writing to what will be removed; a partitioned table brings its partitions along.

Who owns a schema may drop other people's tables there, but not lock them.
"""

SEEN = f"""
SELECT json_build_object(
    'tables', (SELECT json_object_agg(c.oid, format('%I.%I', n.nspname, c.relname)) {_LOSING}),
    'objects', (SELECT json_agg(oid::bigint) FROM pg_largeobject_metadata));
"""  # noqa: S608
"""What there is to be removed that has rows or content of its own: tables by their number, and the large objects'."""

_LARGE_OBJECTS = """
SELECT format('SELECT lo_unlink(%s)', oid) FROM pg_largeobject_metadata
WHERE oid IN (SELECT unnest(:'objects'::oid[]))
"""

# Rows that a user put into an extension's table, by the condition that pg_dump dumps them by.
_EXTENSION_ROWS = """
SELECT format('DELETE FROM %s %s', t.oid::regclass, t.condition)
FROM (SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition FROM pg_extension) t
JOIN pg_class c ON c.oid = t.oid AND c.relkind = 'r'
WHERE has_table_privilege(c.oid, 'DELETE') AND c.oid IN (SELECT unnest(:'seen'::oid[]))
"""

# A default privilege is gone from the catalog once it equals what PostgreSQL would do without it.
_DEFAULT_PRIVILEGES = """
SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I %s %s', pg_get_userbyid(a.defaclrole),
              CASE WHEN a.defaclnamespace <> 0 THEN 'IN SCHEMA ' || a.defaclnamespace::regnamespace END, s.statement)
FROM pg_default_acl a
CROSS JOIN LATERAL (SELECT CASE a.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES'
    WHEN 'f' THEN 'FUNCTIONS' WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END AS kind) k
CROSS JOIN LATERAL (
    SELECT 1 AS position, format('REVOKE ALL ON %s FROM %s', k.kind,
        CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END) AS statement
    FROM (SELECT DISTINCT grantee FROM aclexplode(a.defaclacl)) g
    UNION ALL SELECT 2, format('GRANT ALL ON %s TO %I', k.kind, pg_get_userbyid(a.defaclrole))
    WHERE a.defaclnamespace = 0
    UNION ALL SELECT 3, format('GRANT ALL ON %s TO PUBLIC', k.kind)
    WHERE a.defaclnamespace = 0 AND a.defaclobjtype IN ('f', 'T')) s
WHERE pg_has_role(a.defaclrole, 'USAGE') ORDER BY a.oid, s.position
"""

# An archive holds the rights on a schema as a difference from the first ones; so these are made first.
_SCHEMA_RIGHTS = f"""
SELECT s.statement FROM pg_namespace n
LEFT JOIN pg_init_privs i ON i.classoid = 'pg_namespace'::regclass AND i.objoid = n.oid AND i.objsubid = 0
CROSS JOIN LATERAL (
    SELECT 1 AS position, format('REVOKE ALL ON SCHEMA %I FROM %s CASCADE', n.nspname,
        CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END) AS statement
    FROM (SELECT DISTINCT grantee FROM aclexplode(n.nspacl)) g WHERE g.grantee <> n.nspowner
    UNION ALL SELECT 2, format('GRANT %s ON SCHEMA %I TO %s', g.privilege_type, n.nspname,
        CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)
    FROM aclexplode(i.initprivs) g) s
WHERE n.oid IN ({_KEPT_SCHEMAS}) AND n.nspacl IS DISTINCT FROM i.initprivs AND n.nspacl IS NOT NULL
  AND pg_has_role(n.nspowner, 'USAGE') ORDER BY n.oid, s.position
"""  # noqa: S608

_QUERIES = (
    _EVENT_TRIGGERS,
    _PUBLICATIONS,
    _EXTENSION_ROWS,
    *(_in_schema(*item) for item in _IN_SCHEMAS),
    _SCHEMAS,
    *(_outside_schemas(catalog) for catalog in _OUTSIDE_SCHEMAS),
    _DEFAULT_PRIVILEGES,
    _SCHEMA_RIGHTS,
    _LARGE_OBJECTS,
)

# What is dropped, and whether the role may: who owns a schema may drop what others have there. Text search parsers and
# templates have no owner.
_OWNERS = (
    f"""SELECT 'pg_namespace'::regclass AS classid, n.oid AS objid, n.nspowner AS owner,
        pg_has_role(n.nspowner, 'USAGE') AS may
    FROM pg_namespace n WHERE {USER_SCHEMA} AND n.oid NOT IN ({_KEPT_SCHEMAS})""",  # noqa: S608
    *(
        f"SELECT '{catalog}'::regclass, o.oid, o.{column.removesuffix('namespace')}owner, "  # noqa: S608
        f"pg_has_role(o.{column.removesuffix('namespace')}owner, 'USAGE') OR pg_has_role(n.nspowner, 'USAGE') "
        f"FROM {catalog} o JOIN pg_namespace n ON n.oid = o.{column} "
        f"WHERE {USER_SCHEMA} AND {condition} AND NOT {_part(catalog, 'o.oid')}"
        for catalog, column, condition in _IN_SCHEMAS
        if catalog not in ("pg_ts_parser", "pg_ts_template")
    ),
    *(
        f"SELECT '{catalog}'::regclass, o.oid, o.{owner}, pg_has_role(o.{owner}, 'USAGE') FROM {catalog} o "  # noqa: S608
        f"WHERE o.oid >= 16384 AND NOT {_part(catalog, 'o.oid')}"
        for catalog, owner in (
            ("pg_foreign_server", "srvowner"),
            ("pg_foreign_data_wrapper", "fdwowner"),
            ("pg_language", "lanowner"),
            ("pg_publication", "pubowner"),
        )
    ),
    "SELECT 'pg_largeobject'::regclass, oid, lomowner, pg_has_role(lomowner, 'USAGE') FROM pg_largeobject_metadata",
)
_THERE = f"WITH RECURSIVE there AS ({' UNION ALL '.join(_OWNERS)})"

# With the relations, which are dropped first. A view goes with its rule, which goes with a table: what has a part that
# goes, goes.
_TAKEN_ALONG = """
, edges AS (
    SELECT refclassid, refobjid, classid, objid FROM pg_depend WHERE deptype IN ('n', 'a', 'i', 'P', 'S')
    UNION ALL SELECT classid, objid, refclassid, refobjid FROM pg_depend WHERE deptype = 'i'
), gone AS (
    SELECT classid::oid, objid FROM there WHERE may AND classid = 'pg_class'::regclass
    UNION SELECT e.classid, e.objid FROM gone g JOIN edges e ON (e.refclassid, e.refobjid) = (g.classid, g.objid)
)
SELECT format('%s %s of %s', i.type, i.identity, pg_get_userbyid(t.owner))
FROM there t, LATERAL pg_identify_object(t.classid, t.objid, 0) i
WHERE NOT t.may AND (t.classid::oid, t.objid) NOT IN (SELECT classid, objid FROM gone) ORDER BY 1 LIMIT 10
"""

FINGERPRINT = """
SELECT json_build_object(
    'extensions', (SELECT json_agg(extname ORDER BY extname) FROM pg_extension),
    'members', (SELECT count(*) FROM pg_depend WHERE deptype = 'e'),
    'columns', (SELECT json_agg((a.attrelid, a.attname, a.atttypid, a.attnotnull, a.atthasdef)
                ORDER BY a.attrelid, a.attnum) FROM pg_attribute a WHERE a.attrelid = ANY(:'kept'::oid[])),
    'constraints', (SELECT json_agg(k.oid ORDER BY k.oid) FROM pg_constraint k
                    WHERE k.conrelid = ANY(:'kept'::oid[])),
    'indexes', (SELECT json_agg(i.indexrelid ORDER BY i.indexrelid) FROM pg_index i
                WHERE i.indrelid = ANY(:'kept'::oid[])),
    'triggers', (SELECT json_agg(t.oid ORDER BY t.oid) FROM pg_trigger t
                 WHERE t.tgrelid = ANY(:'kept'::oid[]) AND NOT t.tgisinternal));
"""
"""What must be the same before and after: a CASCADE reaches whatever depends on a dropped object."""


def tell(name: str, oids: Iterable[int | str]) -> str:
    """Tell ``psql`` which relations to leave alone (``kept``), or which tables (``seen``) and large ``objects`` may be
    removed."""
    return f"\\set {name} '{{{','.join(str(oid) for oid in oids)}}}'\n"


def _now(query: str, kept: str) -> str:
    """*query* for a connection that has no variables, with all seen but what is *kept*, which is an array."""
    told = {
        ":'seen'": f"ARRAY(SELECT oid FROM pg_class WHERE oid <> ALL({kept}::oid[]))",  # noqa: S608
        ":'objects'": "ARRAY(SELECT oid FROM pg_largeobject_metadata)",
        ":'kept'": kept,
    }
    for variable, value in told.items():
        query = query.replace(variable, value)
    return query


def not_droppable(connection: BaseDatabaseWrapper, kept: Iterable[int]) -> list[str]:
    """What this role may not drop, in words with the owner: neither it nor its schema is the role's, and nothing takes
    it along."""
    oids = f"ARRAY[{','.join(str(oid) for oid in kept)}]::oid[]"
    refused = rows(connection, _now(f"{_THERE} SELECT 1 FROM there WHERE NOT may LIMIT 1", oids))  # noqa: S608
    return [told for (told,) in rows(connection, _now(_THERE + _TAKEN_ALONG, oids))] if refused else []


def schemas_without_create(connection: BaseDatabaseWrapper, kept: Iterable[int]) -> dict[str, bool]:
    """The schemas that stay; whether this role lacks the right to create something in each."""
    oids = f"ARRAY[{','.join(str(oid) for oid in kept)}]::oid[]"
    sql = "SELECT nspname::text, NOT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE oid IN"
    return dict(rows(connection, _now(f"{sql} ({_KEPT_SCHEMAS})", oids)))


def is_empty(connection: BaseDatabaseWrapper) -> bool:
    """Whether nobody put anything here yet that a restore would remove; the tables of this app alone don't count, and
    nor does what belongs to an extension, but for the rows that it says are the user's own."""
    ours = "ARRAY(SELECT oid FROM pg_class WHERE relname ~ '^django_snapshots_')"
    # Whose tables may have rows is asked below, and who may use a schema is nothing that was put there.
    made = (query for query in _QUERIES if query not in (_EXTENSION_ROWS, _SCHEMA_RIGHTS))
    if any(rows(connection, f"SELECT EXISTS ({_now(query, ours)})")[0][0] for query in made):
        return False
    theirs = """
        SELECT format('SELECT EXISTS (SELECT FROM %s %s)', t.oid::regclass, t.condition)
        FROM (SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition FROM pg_extension) t
        JOIN pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p') WHERE has_table_privilege(c.oid, 'SELECT')
    """
    return not any(rows(connection, question)[0][0] for (question,) in rows(connection, theirs))


def script() -> str:
    """The ``psql`` script that removes the rest."""
    return "\n".join(f"{query.strip()} \\gexec" for query in _QUERIES)


LEFT_OVER = f"""
SELECT json_build_object(
    'SCHEMA', (SELECT coalesce(json_agg(n.nspname), '[]') FROM pg_namespace n WHERE {USER_SCHEMA}),
    'EXTENSION', (SELECT json_agg(extname) FROM pg_extension),
    'EVENT TRIGGER', (SELECT coalesce(json_agg(evtname), '[]') FROM pg_event_trigger),
    'public is mine', (SELECT coalesce(bool_or(pg_has_role(nspowner, 'USAGE')), true)
                       FROM pg_namespace WHERE nspname = 'public'));
"""  # noqa: S608
"""What an archive must not create again, and whether this role may change the schema ``public``."""
