"""The private option file that tells the outside programs how to connect; secrets go nowhere else.

The programs read this file and no other (``--defaults-file``): a ``no-data`` in somebody's ``~/.my.cnf`` would make an
empty dump. What Django would read (``OPTIONS["read_default_file"]``) is read here, and only what concerns the
connection is taken over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from django_snapshots.exceptions import SnapshotConfigurationError

_GROUPS = ("client", "client-server", "client-mariadb")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b"}
_UNESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "s": " ", "\\": "\\", '"': '"', "'": "'"}
_FROM_FILES = frozenset({
    "host", "port", "user", "password", "socket", "protocol", "default-auth", "plugin-dir", "ssl", "ssl-ca",
    "ssl-capath", "ssl-cert", "ssl-key", "ssl-cipher", "ssl-crl", "ssl-crlpath", "ssl-mode", "ssl-verify-server-cert",
    "tls-version", "skip-ssl",
})  # fmt: skip
_MAX_INCLUDES = 10


def connection_options(parameters: Mapping[str, Any], *, oracle: bool, encrypted: bool) -> dict[str, str]:
    """Return the programs' connection options for what Django gives to mysqlclient.

    *parameters* is ``connection.get_connection_params()``; *oracle* says that the programs are MySQL's and not
    MariaDB's, which name TLS differently; *encrypted* whether Django's own connection is.
    """
    options: dict[str, str] = {}
    if path := parameters.get("read_default_file"):
        options.update(_from_file(Path(path).expanduser(), parameters.get("read_default_group")))
    options.update(_plain(parameters))
    if "unix_socket" not in parameters and "host" in parameters:
        options.pop("socket", None)
    options.update(_tls(parameters, options, oracle=oracle, encrypted=encrypted))
    options.setdefault("password", "")
    return options


def write_option_file(directory: Path, options: Mapping[str, str]) -> Path:
    """Write *options* to a file in *directory* that only this user can read (0600); return its path."""
    path = directory / "client.cnf"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:  # noqa: PTH123
        file.write("[client]\n")
        file.writelines(_line(name, value) for name, value in options.items())
    return path


def secrets_in(options: Mapping[str, str]) -> Sequence[str]:
    """The values among *options* that must never be shown."""
    return [value for name, value in options.items() if name == "password" and value]


def _plain(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {
        "host": "host", "port": "port", "user": "user", "passwd": "password", "password": "password",
        "unix_socket": "socket", "auth_plugin": "default-auth",
    }  # fmt: skip
    for source, name in names.items():
        if parameters.get(source) is not None:
            yield name, str(parameters[source])


def _tls(
    parameters: Mapping[str, Any], options: Mapping[str, str], *, oracle: bool, encrypted: bool
) -> Iterator[tuple[str, str]]:
    """TLS as the alias has it: what its options say; where they say nothing, what Django's connection really is.

    Clients changed their default (MariaDB's from 11.4 demands TLS and a certificate that can be verified), and an
    alias that works in Django must not fail in the dump tool for that.
    """
    details = parameters.get("ssl")
    mode = str(parameters.get("ssl_mode") or "").upper()
    yield from ((f"ssl-{key}", str(value)) for key, value in _details(details) if value is not None)
    if mode:
        yield from _mode(mode, oracle=oracle)
    elif details:
        yield ("ssl-mode", "VERIFY_CA" if "ca" in dict(_details(details)) else "REQUIRED") if oracle else ("ssl", "1")
    elif not any(name.startswith("ssl") or name == "skip-ssl" for name in options):
        yield from _mode("PREFERRED" if encrypted else "DISABLED", oracle=oracle)


def _details(details: object) -> Iterator[tuple[str, Any]]:
    if isinstance(details, Mapping):
        for key in ("ca", "capath", "cert", "key", "cipher"):
            if key in details:
                yield key, details[key]


def _mode(mode: str, *, oracle: bool) -> Iterator[tuple[str, str]]:
    if oracle:
        yield "ssl-mode", mode
    elif mode == "DISABLED":
        yield "ssl", "0"
        yield "ssl-verify-server-cert", "0"
    else:
        yield "ssl", "1"
        yield "ssl-verify-server-cert", "1" if mode.startswith("VERIFY") else "0"


def _line(name: str, value: str) -> str:
    if "\0" in value:
        raise SnapshotConfigurationError(f"The database option {name!r} holds a NUL, which no option file can carry.")
    return f'{name}="{"".join(_ESCAPES.get(character, character) for character in value)}"\n'


def _from_file(path: Path, group: str | None) -> dict[str, str]:
    wanted = {*_GROUPS, *([group] if group else [])}
    found: dict[str, str] = {}
    for section, name, value in _entries(path, _MAX_INCLUDES):
        if section in wanted and name in _FROM_FILES:
            found[name] = value
    return found


def _entries(path: Path, includes_left: int) -> Iterator[tuple[str, str, str]]:
    """Every (group, option, value) of an option file and of the files that it includes, in order."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise SnapshotConfigurationError(f"The option file {path} can't be read: {error.strerror}.") from error
    section = ""
    for line in map(str.strip, lines):
        if line.startswith("!") and includes_left:
            for included in _included(line):
                yield from _entries(included, includes_left - 1)
        elif line.startswith("[") and "]" in line:
            section = line[1 : line.index("]")].strip()
        elif line and not line.startswith(("#", ";", "!")):
            name, equals, value = _without_comment(line).partition("=")
            yield section, name.strip().replace("_", "-"), _value(value.strip()) if equals else "1"


def _included(line: str) -> Iterator[Path]:
    directive, _, argument = line.partition(" ")
    path = Path(argument.strip())
    if directive == "!include":
        yield path
    elif directive == "!includedir" and path.is_dir():
        yield from sorted(path.glob("*.cnf"))


def _without_comment(line: str) -> str:
    quote = ""
    escaped = False
    for position, character in enumerate(line):
        if character in "\"'" and not escaped:
            quote = "" if quote == character else quote or character
        if character == "#" and not quote:
            return line[:position].rstrip()
        escaped = bool(quote) and character == "\\" and not escaped
    return line


def _value(text: str) -> str:
    if len(text) >= 2 and text[0] in "\"'" and text[-1] == text[0]:
        text = text[1:-1]
    characters = iter(text)
    result = []
    for character in characters:
        if character == "\\" and (following := next(characters, None)) is not None:
            result.append(_UNESCAPES.get(following, f"\\{following}"))
        else:
            result.append(character)
    return "".join(result)
