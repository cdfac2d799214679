"""What a database has besides its content, and what another one needs to take its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.maintenance import execute
from django_snapshots.connectors.postgres.quoting import identifier, literal
from django_snapshots.connectors.recorded import by_name
from django_snapshots.exceptions import SnapshotIntegrityError

# pg_dump's own list, variable_is_guc_list_quote(): the value is a list of names, each of which is quoted.
_LISTS = frozenset(
    {
        *("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries"),
        *("temp_tablespaces", "unix_socket_directories"),
    }
)
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
_ITEM = re.compile(r'"((?:[^"]|"")*)"|([^",\s]+)')


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One right on the database itself."""

    grantor: str
    grantee: str | None
    """``None`` is PUBLIC."""
    privilege: str
    grantable: bool


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One ``ALTER DATABASE ... SET``, or ``ALTER ROLE ... IN DATABASE ... SET``."""

    role: str | None
    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Properties:
    """Of one database."""

    owner: str
    tablespace: str = "pg_default"
    locale: Mapping[str, Any] = field(default_factory=dict)
    """``encoding``, ``provider``, ``collate``, ``ctype``, ``locale``, ``rules``; what isn't there is the server's."""
    grants: frozenset[Grant] | None = None
    """``None`` is what a new database has."""
    settings: frozenset[Setting] = frozenset()
    connection_limit: int = -1
    template: bool = False
    comment: str | None = None


def read(connection: BaseDatabaseWrapper, name: str) -> Properties:
    """Those of the database *name* of the server."""
    sql = """
        SELECT to_jsonb(d), pg_encoding_to_char(d.encoding), pg_get_userbyid(d.datdba)::text, t.spcname::text,
            shobj_description(d.oid, 'pg_database')
        FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = %s
    """
    ((row, encoding, owner, tablespace, comment),) = catalog.rows(connection, sql, [name])
    row = catalog.decoded(row)
    return Properties(
        owner=owner,
        tablespace=tablespace,
        locale=_locale(row, encoding),
        grants=frozenset(_grants(connection, name)),
        settings=frozenset(_settings(connection, name)),
        connection_limit=row["datconnlimit"],
        template=row["datistemplate"],
        comment=comment,
    )


def _locale(row: Mapping[str, Any], encoding: str) -> dict[str, Any]:
    """The columns are called differently from version to version."""
    known = {
        "encoding": encoding,
        "provider": row.get("datlocprovider"),
        "collate": row["datcollate"],
        "ctype": row["datctype"],
        "locale": row.get("datlocale", row.get("daticulocale")),
        "rules": row.get("daticurules"),
    }
    return {key: value for key, value in known.items() if value is not None}


def locale_of(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """Encoding and locale of the database that *connection* is in."""
    sql = "SELECT to_jsonb(d), pg_encoding_to_char(d.encoding) FROM pg_database d WHERE datname = current_database()"
    ((row, encoding),) = catalog.rows(connection, sql)
    return _locale(catalog.decoded(row), encoding)


def recorded_locale(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Encoding and locale that a dump's metadata name. Raises ``SnapshotIntegrityError``."""
    locale, encoding = by_name(metadata, "locale", str), metadata.get("encoding")
    provider = locale.get("provider")
    if provider is not None and (provider not in _PROVIDERS or (provider != "c" and "locale" not in locale)):
        raise SnapshotIntegrityError(
            f"The manifest names the locale {locale}, which this version does not know. Nothing was changed. Make the "
            "database yourself, empty and with the locale that it is to have, and restore into it."
        )
    return locale or ({"encoding": encoding} if isinstance(encoding, str) and encoding else {})


def _grants(connection: BaseDatabaseWrapper, name: str) -> Iterator[Grant]:
    sql = """
        SELECT pg_get_userbyid(a.grantor)::text, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END,
            a.privilege_type, a.is_grantable
        FROM pg_database d, LATERAL aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE d.datname = %s
    """
    for grantor, grantee, privilege, grantable in catalog.rows(connection, sql, [name]):
        yield Grant(grantor=grantor, grantee=grantee, privilege=privilege, grantable=grantable)


def _settings(connection: BaseDatabaseWrapper, name: str) -> Iterator[Setting]:
    sql = """
        SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole)::text END, unnest(s.setconfig)
        FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = %s
    """
    for role, item in catalog.rows(connection, sql, [name]):
        key, _, value = item.partition("=")
        yield Setting(role=role, name=key, value=value)


def create(connection: BaseDatabaseWrapper, name: str, properties: Properties) -> None:
    """Create the database *name*, empty, with the owner, the tablespace, the encoding and the locale of *properties*.

    Until it gets its place only its owner may connect, and the role that asks.
    """
    execute(connection, f"CREATE DATABASE {identifier(name)} {' '.join(_options(connection, properties))}")
    execute(connection, f"REVOKE ALL ON DATABASE {identifier(name)} FROM PUBLIC")
    ((user,),) = catalog.rows(connection, "SELECT session_user::text")
    execute(connection, f"GRANT CONNECT ON DATABASE {identifier(name)} TO {identifier(user)}")


def give_default_rights(connection: BaseDatabaseWrapper, name: str) -> None:
    """Give the database *name*, which ``create`` has made, the rights that any new one has."""
    execute(connection, f"GRANT CONNECT, TEMPORARY ON DATABASE {identifier(name)} TO PUBLIC")


def _options(connection: BaseDatabaseWrapper, properties: Properties) -> Iterator[str]:
    locale = properties.locale
    yield f"TEMPLATE template0 OWNER {identifier(properties.owner)}"
    if properties.tablespace != "pg_default":
        yield f"TABLESPACE {identifier(properties.tablespace)}"
    for word, key in (("ENCODING", "encoding"), ("LC_COLLATE", "collate"), ("LC_CTYPE", "ctype")):
        if key in locale:
            yield f"{word} {literal(locale[key])}"
    ((version,),) = catalog.rows(connection, "SELECT current_setting('server_version_num')::int")
    if version >= 150000 and "provider" in locale:
        yield from _provider(locale)


def _provider(locale: Mapping[str, Any]) -> Iterator[str]:
    yield f"LOCALE_PROVIDER {_PROVIDERS[locale['provider']]}"
    if locale["provider"] == "i":
        yield f"ICU_LOCALE {literal(locale['locale'])}"
        if "rules" in locale:
            yield f"ICU_RULES {literal(locale['rules'])}"
    elif locale["provider"] == "b":
        yield f"BUILTIN_LOCALE {literal(locale['locale'])}"


def apply(connection: BaseDatabaseWrapper, name: str, properties: Properties) -> None:
    """Give the database *name* the rights, settings, limit and comment of *properties*.

    In a transaction, because it is nobody's for a moment. Raises ``django.db.Error`` where the role may not.
    """
    database = identifier(name)
    if properties.grants is not None:
        _grant(connection, database, name, properties)
    # An extension may have made settings of its own when it was created.
    for role in sorted({setting.role or "" for setting in _settings(connection, name)}):
        whom = f"ROLE {identifier(role)} IN " if role else ""
        execute(connection, f"ALTER {whom}DATABASE {database} RESET ALL")
    for setting in sorted(properties.settings, key=lambda item: (item.role or "", item.name)):
        whom = f"ROLE {identifier(setting.role)} IN " if setting.role is not None else ""
        execute(connection, f"ALTER {whom}DATABASE {database} SET {_assignment(setting)}")
    execute(connection, f"ALTER DATABASE {database} CONNECTION LIMIT {properties.connection_limit}")
    if properties.template:
        execute(connection, f"ALTER DATABASE {database} IS_TEMPLATE true")
    said = "NULL" if properties.comment is None else literal(properties.comment)
    execute(connection, f"COMMENT ON DATABASE {database} IS {said}")


def _assignment(setting: Setting) -> str:
    name = ".".join(identifier(part) for part in setting.name.split("."))
    if setting.name.lower() not in _LISTS:
        return f"{name} TO {literal(setting.value)}"
    items = [quoted.replace('""', '"') or plain for quoted, plain in _ITEM.findall(setting.value)]
    return f"{name} TO {', '.join(literal(item) for item in items) or literal('')}"


def _grant(connection: BaseDatabaseWrapper, database: str, name: str, properties: Properties) -> None:
    for whom in {grant.grantee for grant in _grants(connection, name)}:
        execute(connection, f"REVOKE ALL ON DATABASE {database} FROM {_grantee(whom)} CASCADE")
    ((me,),) = catalog.rows(connection, "SELECT current_user::text")
    for grant in _in_order(properties):
        option = " WITH GRANT OPTION" if grant.grantable and grant.grantee != properties.owner else ""
        if grant.grantor != properties.owner:
            execute(connection, f"SET ROLE {identifier(grant.grantor)}")
        execute(connection, f"GRANT {grant.privilege} ON DATABASE {database} TO {_grantee(grant.grantee)}{option}")
        if grant.grantor != properties.owner:
            execute(connection, f"SET ROLE {identifier(me)}")


def _in_order(properties: Properties) -> Iterator[Grant]:
    """What the owner has granted first, then what those could grant on."""
    left = sorted(properties.grants or (), key=lambda grant: (grant.grantee or "", grant.privilege, grant.grantor))
    may = {(properties.owner, grant.privilege) for grant in left}
    while left:
        now = [grant for grant in left if (grant.grantor, grant.privilege) in may] or left
        yield from now
        may |= {(grant.grantee, grant.privilege) for grant in now if grant.grantable and grant.grantee}
        left = [grant for grant in left if grant not in now]


def _grantee(role: str | None) -> str:
    return "PUBLIC" if role is None else identifier(role)


def difference(wanted: Properties, made: Properties) -> list[str]:
    """What *made* lacks or has too much of *wanted*, in words."""
    told = []
    if wanted.grants is not None and made.grants != wanted.grants:
        parts = sorted(
            f"{item.privilege} of {item.grantee or 'PUBLIC'}" for item in wanted.grants ^ (made.grants or set())
        )
        told.append(f"rights on the database ({', '.join(parts)})")
    if made.settings != wanted.settings:
        parts = sorted({f"{item.name} of {item.role or 'all'}" for item in wanted.settings ^ made.settings})
        told.append(f"settings ({', '.join(parts)})")
    for word, one, other in (
        ("its owner", wanted.owner, made.owner),
        ("its connection limit", wanted.connection_limit, made.connection_limit),
        ("its tablespace", wanted.tablespace, made.tablespace),
        ("whether it is a template", wanted.template, made.template),
    ):
        if one != other:
            told.append(word)
    return told
