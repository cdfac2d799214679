"""How rclone names a place: ``remote:path``, ``:backend:path``, with ``,option=value`` in between. Pure, no I/O.

Every user of the machine can read a command line, and a place is given there. So a place that carries a secret is
refused here, before any program is started.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.redaction import without_url_credentials
from django_snapshots.storage.paths import is_below

_OPTION = re.compile(
    r""",(?P<key>[^,:="']+)(?:=(?:"(?P<double>(?:[^"]|"")*)"|'(?P<single>(?:[^']|'')*)'|(?P<plain>[^,:"']*)))?"""
)
_OPTIONS = re.sub(r"[?]P<[a-z]+>", "?:", _OPTION.pattern)
_PLACE = re.compile(rf"(?P<name>:?[\w.+@][\w.+@ -]*)(?P<options>(?:{_OPTIONS})*):")
_SECRET = re.compile(
    "pass|secret|key|token|credential|cookie|sas|auth|bearer|salt|mnemonic|grant|connection_string|session|headers|2fa",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(
    ".*_(file|path|dir|env|mode)|(.*_)?access_key_id|.*kms_key_id|(.*_)?application_credential_(id|name)|auth_(url|version)"
    "|(.*_)?(env_auth|key_use_agent|directory_markers|passive|anonymous)|(use|disable|no|ask)_.*",
    re.IGNORECASE,
)
_SECRET_QUERY = re.compile("[?&][^=&]*(?:pass|secret|key|token|auth|sig)[^=&]*=", re.IGNORECASE)
"""In a URL, such as the signature of a shared one."""
_SWITCHES = frozenset({"", "true", "false"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """A remote and a path on it."""

    remote: str
    """With the colon at its end, and with options if there are any."""
    path: str
    """Without slashes at its end."""

    def __str__(self) -> str:
        return f"{self.remote}{self.path}"

    def at(self, path: str) -> str:
        """The place of an object below this one, as rclone takes it."""
        if not path:
            return str(self)
        return f"{self.remote}{self.path.rstrip('/')}/{path}" if self.path else f"{self.remote}{path}"

    def overlaps(self, other: Place) -> bool:
        """Whether one lies within the other, as far as the names tell."""
        if self.remote != other.remote:
            return False
        mine, others = self.path.strip("/"), other.path.strip("/")
        return is_below(mine, others) or is_below(others, mine)


def parse_place(text: str) -> Place:
    """Read ``remote:path``. Raises ``SnapshotConfigurationError`` for what is no such thing, or carries a secret."""
    found = _PLACE.match(text)
    if found is None:
        raise SnapshotConfigurationError(
            f"{_harmless(text)!r} is no rclone remote: it must be 'remote:path' or ':backend:path'. For "
            "a directory of this machine use LocalFileSystemBackend, or ':local:/the/directory'."
        )
    for option in _OPTION.finditer(found["options"]):
        value = next((option[kind] for kind in ("double", "single", "plain") if option[kind] is not None), "")
        _refuse_secret(found["name"], option["key"], value)
    if without_url_credentials(text) != text:
        # A URL whose colon ended the remote: rclone would take the rest for a path, and show it to everybody.
        raise SnapshotConfigurationError(
            f"{_harmless(text)!r} has a password in a URL, and every user of the machine can read a command line. Name "
            "a remote of rclone's configuration; the URL of an option stands in quotes, without a password."
        )
    path = text[found.end() :]
    if found["name"] == ":local" and not path.startswith("/"):
        raise SnapshotConfigurationError(f"{text!r} must have an absolute path: processes start in many directories.")
    return Place(remote=text[: found.end()], path=path.rstrip("/") or path[:1])


def is_secret(key: str, value: str) -> bool:
    """Whether an option or environment variable of this name is one that nobody else may read."""
    if value.lower() in _SWITCHES:
        return False
    named = _SECRET.search(key) is not None and _NO_SECRET.fullmatch(key) is None
    return named or without_url_credentials(value) != value or _SECRET_QUERY.search(value) is not None


def _harmless(text: str) -> str:
    """The beginning of *text*, up to where an option's value or a password may be."""
    shown = re.split("[,=@\"']", without_url_credentials(text), maxsplit=1)[0]
    return shown if shown == text else f"{shown}..."


def _refuse_secret(name: str, key: str, value: str) -> None:
    if is_secret(key.strip(), value):
        raise SnapshotConfigurationError(
            f"The option {key.strip()!r} of the rclone remote {name!r} is a secret, and every user of the machine can "
            "read a command line. Put it into a file and name that with config=, or into environment= as "
            f"RCLONE_CONFIG_<REMOTE>_{key.strip().upper()}."
        )
