"""A JSON document that proves itself: a manifest, a tombstone, a note beside a snapshot.

It carries its own SHA-256 (field ``digest``), taken over everything else in canonical form. That covers what it says;
its bytes are fixed too: they are what ``to_sealed`` makes of what it says, so that no byte can be changed, a blank
between two fields included. What is read from storage is hostile until it has passed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from django_snapshots.exceptions import SnapshotIntegrityError, SnapshotVersionError


def digest_of(data: Mapping[str, Any]) -> str:
    """``sha256:`` over *data* in canonical form: sorted keys, no white space, ASCII with ``\\u`` escapes."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode('ascii')).hexdigest()}"


def to_sealed(data: Mapping[str, Any]) -> bytes:
    """The file of *data*, which has its digest: UTF-8, for people and programs."""
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_sealed(content: bytes, where: str, *, what: str, version: str, most: int) -> dict[str, Any]:
    """What a file of at most *most* bytes says, without its digest.

    Raises ``SnapshotIntegrityError`` for anything that isn't whole and unchanged, and ``SnapshotVersionError`` for
    another version than *version*; *where* names the file in the message, *what* says what it should be.
    """
    data = _parsed(content, where, what, most)
    if data.get("version") != version:
        raise SnapshotVersionError(
            f"{where} is {what} of version {data.get('version')!r}; this django-snapshots knows {version!r}. "
            "Use the version that wrote it, or a newer one."
        )
    unsealed = {key: value for key, value in data.items() if key != "digest"}
    try:
        is_whole = data.get("digest") == digest_of(unsealed)
        # Text that JSON can carry and no file can hold, a lone surrogate, fails here.
        is_untouched = content == to_sealed(data)
    except (ValueError, RecursionError) as error:
        raise SnapshotIntegrityError(f"{where} is not {what}: {error}.") from error
    if not is_whole:
        raise SnapshotIntegrityError(f"{where} was changed after it was written: its digest does not match.")
    if not is_untouched:
        raise SnapshotIntegrityError(
            f"{where} was changed after it was written: it says the same as before, but its bytes are not laid out as "
            "django-snapshots writes them."
        )
    return unsealed


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of *pairs*; raises ``ValueError`` if a key stands in it twice."""
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return data


def _parsed(content: bytes, where: str, what: str, most: int) -> dict[str, Any]:
    if len(content) > most:
        raise SnapshotIntegrityError(f"{where} is larger than {most} bytes; that is not {what}.")
    try:
        data = json.loads(content.decode(), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SnapshotIntegrityError(f"{where} is not {what}: {error}.") from error
    if not isinstance(data, dict):
        raise SnapshotIntegrityError(f"{where} is not {what}: it is not a JSON object.")
    return data


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
