"""What single tables are to a database: their columns, triggers and sequences, and the foreign keys of and on them.

Asked by Django's connection beforehand, and again by ``psql`` once the tables are locked; so it is one statement
without parameters that gives one JSON value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.catalog import USER_SCHEMA
from django_snapshots.connectors.postgres.maintenance import execute, transaction
from django_snapshots.connectors.postgres.quoting import identifier, literal

_ENABLE = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}

# A partition has clones of the keys of the whole. What can be dropped, made and counted is what they are clones of.
# Two columns are compared by the key's own operator: which = is found by name depends on the search path.
_QUERY = """
WITH RECURSIVE wanted AS (
    SELECT DISTINCT to_regclass(name)::oid AS oid FROM unnest({names}::text[]) AS name
    WHERE to_regclass(name) IS NOT NULL
), up AS (
    SELECT k.oid, k.conparentid, k.conrelid IN (SELECT oid FROM wanted) AS of_one,
        k.confrelid IN (SELECT oid FROM wanted) AS on_one
    FROM pg_constraint k
    WHERE k.contype = 'f' AND (k.conrelid IN (SELECT oid FROM wanted) OR k.confrelid IN (SELECT oid FROM wanted))
    UNION
    SELECT k.oid, k.conparentid, up.of_one, up.on_one FROM up JOIN pg_constraint k ON k.oid = up.conparentid
), top AS (
    SELECT oid, bool_or(of_one) AS of_one, bool_or(on_one) AS on_one FROM up WHERE conparentid = 0 GROUP BY oid
)
SELECT json_build_object(
'tables', (SELECT json_agg(json_build_object(
    'oid', c.oid::bigint, 'name', format('%I.%I', n.nspname, c.relname), 'kind', c.relkind,
    'mine', pg_has_role(c.relowner, 'USAGE'), 'hidden', row_security_active(c.oid),
    'member', EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e'),
    'partitions', (SELECT json_agg(format('%I.%I', m.nspname, p.relname) ORDER BY p.relname) FROM pg_inherits i
                   JOIN pg_class p ON p.oid = i.inhrelid JOIN pg_namespace m ON m.oid = p.relnamespace
                   WHERE i.inhparent = c.oid),
    'columns', (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)
                FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    'large', (SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                  AND (t.oid = 'oid'::regtype OR t.typtype = 'd' AND t.typname = 'lo')),
    'triggers', (SELECT json_agg(json_build_array(t.tgname, t.tgenabled) ORDER BY t.tgname) FROM pg_trigger t
                 WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'),
    'rules', (SELECT json_agg(json_build_array(r.rulename, r.ev_enabled) ORDER BY r.rulename) FROM pg_rewrite r
              WHERE r.ev_class = c.oid AND r.ev_type = '4' AND r.ev_enabled <> 'D'))
    ORDER BY c.oid)
    FROM wanted JOIN pg_class c ON c.oid = wanted.oid JOIN pg_namespace n ON n.oid = c.relnamespace),
'sequences', (SELECT json_agg(json_build_object(
    'name', format('%I.%I', n.nspname, s.relname), 'table', format('%I.%I', m.nspname, c.relname),
    'column', quote_ident(a.attname), 'step', q.seqincrement, 'least', q.seqmin, 'most', q.seqmax) ORDER BY s.oid)
    FROM wanted JOIN pg_depend d ON d.refobjid = wanted.oid AND d.refclassid = 'pg_class'::regclass
        AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace
    JOIN pg_sequence q ON q.seqrelid = s.oid
    JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace m ON m.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    WHERE a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)),
'keys', (SELECT json_agg(json_build_object(
    'oid', k.oid::bigint, 'name', k.conname, 'table', format('%I.%I', n.nspname, c.relname),
    'partitioned', c.relkind = 'p', 'of_one', top.of_one, 'on_one', top.on_one,
    'waits', k.condeferrable AND (NOT top.on_one OR k.confdeltype = 'a'), 'holds', k.convalidated,
    'mine', pg_has_role(c.relowner, 'USAGE'), 'definition', pg_get_constraintdef(k.oid),
    'comment', obj_description(k.oid, 'pg_constraint'),
    'count', CASE WHEN coalesce((to_jsonb(k) ->> 'conperiod')::boolean, false)
                       OR NOT coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true) THEN NULL
        ELSE format('SELECT count(*) FROM %s%I.%I c LEFT JOIN %s%I.%I p ON %s WHERE p.%I IS NULL AND (%s)',
            CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, n.nspname, c.relname,
            CASE r.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, m.nspname, r.relname, x.same, x.first, x.set) END)
    ORDER BY c.oid, k.conname)
    FROM top JOIN pg_constraint k ON k.oid = top.oid
    JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace m ON m.oid = r.relnamespace
    CROSS JOIN LATERAL (
        SELECT string_agg(format('p.%I OPERATOR(%I.%s) c.%I%s', b.attname, s.nspname, o.oprname, a.attname,
                CASE WHEN a.attcollation <> b.attcollation AND a.attcollation <> 0 AND b.attcollation <> 0
                     THEN (SELECT format(' COLLATE %I.%I', w.nspname, l.collname) FROM pg_collation l
                           JOIN pg_namespace w ON w.oid = l.collnamespace WHERE l.oid = b.attcollation) END),
                ' AND ' ORDER BY u.position) AS same,
            (array_agg(b.attname ORDER BY u.position))[1] AS first,
            string_agg(format('c.%I IS NOT NULL', a.attname),
                CASE k.confmatchtype WHEN 'f' THEN ' OR ' ELSE ' AND ' END ORDER BY u.position) AS set
        FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY AS u (mine, other, operator, position)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.mine
        JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.other
        JOIN pg_operator o ON o.oid = u.operator JOIN pg_namespace s ON s.oid = o.oprnamespace) x)
)
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One relation that a table's name has led to."""

    oid: int
    name: str
    """Quoted, with its schema."""
    kind: str
    """As in ``pg_class.relkind``."""
    mine: bool
    """Whether the role has the rights of its owner."""
    hidden: bool
    """Whether row-level security shows the role only a part of it."""
    member: bool
    """Whether it belongs to an extension."""
    partitions: tuple[str, ...]
    columns: Mapping[str, str]
    """Names, unquoted, of those that hold a value of their own, and their types."""
    large: tuple[str, ...]
    """Columns that may name large objects."""
    triggers: tuple[tuple[str, str], ...]
    """Of a user's own, unquoted, with how each is enabled; without those that are not."""
    rules: tuple[tuple[str, str], ...]
    """The same of those that would act on a delete."""

    def quiet(self) -> Iterable[str]:
        """Let no trigger and no rule act."""
        for trigger, _ in self.triggers:
            yield f"ALTER TABLE ONLY {self.name} DISABLE TRIGGER {identifier(trigger)};"
        for rule, _ in self.rules:
            yield f"ALTER TABLE {self.name} DISABLE RULE {identifier(rule)};"

    def loud(self) -> Iterable[str]:
        """The opposite, each as it was."""
        for trigger, how in self.triggers:
            yield f"ALTER TABLE ONLY {self.name} {_ENABLE[how]} TRIGGER {identifier(trigger)};"
        for rule, how in self.rules:
            yield f"ALTER TABLE {self.name} {_ENABLE[how]} RULE {identifier(rule)};"


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One that belongs to a column of a table."""

    name: str
    table: str
    column: str
    """All three quoted."""
    step: int
    least: int
    most: int

    @property
    def question(self) -> str:
        """Asks for the furthest value of the column, and where the sequence is."""
        furthest = "max" if self.step > 0 else "min"
        return (
            f"SELECT json_build_array((SELECT {furthest}({self.column}) FROM ONLY {self.table}), last_value, is_called)"  # noqa: S608
            f" FROM {self.name};"
        )

    def move(self, furthest: int | None, last: int, called: bool) -> str | None:
        """Brings it past the *furthest* value, if it is not there yet; never back: what was given to rows that are gone
        may stand in other tables. Unlike ``setval`` it is rolled back with the transaction."""
        if furthest is None:
            return None
        following = last + self.step if called else last
        is_past = following > furthest if self.step > 0 else following < furthest
        wanted = max(self.least, min(self.most, furthest + self.step))
        return None if is_past else f"ALTER SEQUENCE {self.name} RESTART WITH {wanted};"


@dataclass(frozen=True, kw_only=True)
class Key:
    """One foreign key of the tables or on them."""

    oid: int
    name: str
    """Unquoted."""
    table: str
    """Quoted, with its schema: the one that points."""
    partitioned: bool
    of_one: bool
    """Whether the table that points is one of those that are restored, or has it as a partition."""
    on_one: bool
    """The same of the table that it points at."""
    waits: bool
    """Whether it can be left as it is: it is looked at when all rows are there, and does nothing to rows elsewhere."""
    holds: bool
    """Whether the server has looked at every row; else rows may point at nothing already."""
    mine: bool
    definition: str
    comment: str | None
    count: str | None
    """The statement that counts the rows that point at nothing; ``None`` if only the server can tell."""

    @property
    def told(self) -> str:
        """In words."""
        return f"{identifier(self.name)} of {self.table}"

    @property
    def _alter(self) -> str:
        return f"ALTER TABLE {'' if self.partitioned else 'ONLY '}{self.table}"

    def drop(self) -> str:
        """Takes it away, for it would act, or look, at once."""
        return f"{self._alter} DROP CONSTRAINT {identifier(self.name)};"

    def make(self) -> Iterable[str]:
        """Makes it again."""
        yield f"{self._alter} ADD CONSTRAINT {identifier(self.name)} {self.definition};"
        if self.comment is not None:
            yield f"COMMENT ON CONSTRAINT {identifier(self.name)} ON {self.table} IS {literal(self.comment)};"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All of it."""

    tables: tuple[Table, ...]
    sequences: tuple[Sequence, ...]
    keys: tuple[Key, ...]

    @staticmethod
    def question(names: Iterable[str]) -> str:
        """The statement, for tables by these *names*, quoted with their schema. Its search path has to be PostgreSQL's
        own alone, or the names of types and tables in the answer depend on it."""
        return _QUERY.replace("{names}", f"ARRAY[{', '.join(literal(name) for name in sorted(names))}]")

    @classmethod
    def answered(cls, text: Any) -> Self:
        """From the answer."""
        data = catalog.decoded(text)
        return cls(
            tables=tuple(
                Table(
                    **{
                        **item,
                        "partitions": tuple(item["partitions"] or ()),
                        "columns": dict(item["columns"] or ()),
                        "large": tuple(item["large"] or ()),
                        "triggers": tuple((name, how) for name, how in item["triggers"] or ()),
                        "rules": tuple((name, how) for name, how in item["rules"] or ()),
                    }
                )
                for item in data["tables"] or ()
            ),
            sequences=tuple(Sequence(**item) for item in data["sequences"] or ()),
            keys=tuple(Key(**item) for item in data["keys"] or ()),
        )

    @classmethod
    def seen(cls, connection: BaseDatabaseWrapper, names: Collection[str]) -> Self:
        """As *connection* sees it now."""
        with transaction(connection):
            execute(connection, "SET LOCAL search_path = pg_catalog, pg_temp")
            ((answer,),) = catalog.rows(connection, cls.question(names))
        return cls.answered(answer)

    @property
    def remade(self) -> tuple[Key, ...]:
        """The keys that are dropped and made again."""
        return tuple(key for key in self.keys if not key.waits)

    @property
    def pointing(self) -> tuple[Key, ...]:
        """Those by which rows that stay point at one of the tables."""
        return tuple(key for key in self.keys if key.on_one and (key.partitioned or not key.of_one))


def find(connection: BaseDatabaseWrapper, wanted: Iterable[str]) -> dict[str, str]:
    """For each of *wanted* the quoted name with its schema, if there is a relation: one that Django would find, or
    ``schema.name``. PostgreSQL's own are not there."""
    sql = f"""
        SELECT wanted, format('%%I.%%I', n.nspname, c.relname) FROM unnest(%s::text[]) AS wanted
        JOIN pg_class c ON c.oid = coalesce(to_regclass(quote_ident(wanted)), CASE WHEN strpos(wanted, '.') > 1
            THEN to_regclass(quote_ident(split_part(wanted, '.', 1)) || '.'
                             || quote_ident(substr(wanted, strpos(wanted, '.') + 1))) END)
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {USER_SCHEMA}
    """  # noqa: S608 - made of constants
    return dict(catalog.rows(connection, sql, [sorted(wanted)]))
