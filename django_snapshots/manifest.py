"""The manifest: the record of one snapshot, versioned JSON both ways.

The form is specified in ``docs/reference/format.md``. A manifest proves itself (``sealed.py``): one changed byte is
found out. What is read from storage is hostile until it has passed here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotIntegrityError
from django_snapshots.sealed import digest_of, from_sealed, to_sealed, unique_keys

VERSION = "1"
MANIFEST_FILENAME = "manifest.json"
MAX_MANIFEST_SIZE = 64 * 1024 * 1024
"""Bytes; a manifest that is larger is not read."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_LENGTH = 150
_FILENAME_LENGTH = 255
NOTE_KINDS = ("pin", "verify", "drill")
"""What may be noted beside a snapshot after it was published, each in ``<kind>.json``: see ``catalog/notes.py``."""

# Also what the catalog writes for a moment beside them, and however a file system that ignores case would see them.
_RESERVED_BEGINNINGS = ("manifest.json", "tombstone.json", ".django-snapshots")
_RESERVED_FILENAMES = frozenset(f"{kind}.json" for kind in NOTE_KINDS)
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


def check_name(name: object) -> str:
    """Return *name* if a snapshot may be called so, else raise ``SnapshotConfigurationError``."""
    if (
        not isinstance(name, str)
        or not _NAME.fullmatch(name)
        or name.endswith((".", ".tar"))
        or len(name) > _NAME_LENGTH
    ):
        raise SnapshotConfigurationError(
            f"{name!r} can't be a snapshot's name. Use letters, digits, '.', '_' and '-', beginning with a letter or "
            f"digit, at most {_NAME_LENGTH} characters, ending neither in '.' nor in '.tar'."
        )
    return name


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """One stored file of a snapshot."""

    type: str
    filename: str
    """Its name beside the manifest."""
    size: int
    """Bytes as stored."""
    checksum: str
    """``sha256:`` and 64 hex digits, of the bytes as stored."""
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that this version does not know, kept as they came."""

    @property
    def subject(self) -> str:
        """What it is a copy of: the alias of a database; for other kinds their one name."""
        return str(self.metadata.get("subject") or self.metadata.get("database") or self.type)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, also what a step of a run keeps in the journal."""
        return {
            **self.unknown,
            "type": self.type,
            "filename": self.filename,
            "size": self.size,
            "checksum": self.checksum,
            "created_at": to_iso(self.created_at),
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_json(cls, data: object, where: str = "the manifest") -> Self:
        """Check *data* and make a record of it; raise ``SnapshotIntegrityError`` that names *where*."""
        reader = _Reader(data, f"an artifact in {where}")
        filename = reader.take("filename", str)
        if not is_safe_filename(filename):
            raise SnapshotIntegrityError(f"{where} names a file {filename!r}, which can't lie beside a manifest.")
        size = reader.take("size", int)
        checksum = reader.take("checksum", str)
        if size < 0 or not _CHECKSUM.fullmatch(checksum):
            raise SnapshotIntegrityError(f"{where} has an impossible size or checksum for {filename!r}.")
        return cls(
            type=reader.take("type", str),
            filename=filename,
            size=size,
            checksum=checksum,
            created_at=reader.take_datetime("created_at"),
            metadata=reader.take("metadata", dict),
            unknown=reader.rest(),
        )


@dataclass(frozen=True, kw_only=True)
class Safety:
    """What a safety copy is for."""

    restore: str
    """The run that was about to replace what it is a copy of, 32 hex digits."""
    expires_at: datetime
    """Until then it stays; aware."""
    tables: tuple[str, ...] = ()
    """The only tables whose rows the restore was about to replace, and an undo brings back; empty for the whole."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        tables = {"tables": list(self.tables)} if self.tables else {}
        return {"restore": self.restore, "expires_at": to_iso(self.expires_at), **tables}

    @classmethod
    def from_json(cls, data: object, where: str) -> Self:
        """Check *data*; raise ``SnapshotIntegrityError`` that names *where*."""
        reader = _Reader(data, f"safety in {where}")
        tables = reader.take_if_there("tables", [])
        # Taken for the whole, an undo would bring back more than was replaced.
        if not isinstance(tables, list) or not all(isinstance(name, str) and name for name in tables):
            raise SnapshotIntegrityError(f"safety in {where} has no proper 'tables': expected a list of names.")
        return cls(
            restore=reader.take("restore", str), expires_at=reader.take_datetime("expires_at"), tables=tuple(tables)
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One snapshot as its manifest tells it."""

    name: str
    created_at: datetime
    """The moment that the databases' transactions began."""
    run: str
    """The id of the run that made it."""
    storage: str
    """The id of the storage that it was published in."""
    artifacts: tuple[ArtifactRecord, ...]
    version: str = VERSION
    django_version: str = ""
    python_version: str = ""
    hostname: str = ""
    project: str = ""
    environment: str = ""
    encrypted: bool = False
    pip: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    safety: Safety | None = None
    """Set in the safety copy of a restore: a snapshot that counts for nothing and stays for a set time."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that this version does not know, kept as they came."""

    @property
    def size(self) -> int:
        """Bytes as stored, of all artifacts."""
        return sum(artifact.size for artifact in self.artifacts)

    @property
    def databases(self) -> tuple[str, ...]:
        """The aliases in it."""
        return tuple(artifact.subject for artifact in self.artifacts if artifact.type == "database")

    def with_name(self, name: str) -> Self:
        """The same under another name."""
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the digest that covers it."""
        data = {
            **self.unknown,
            "version": self.version,
            "name": self.name,
            "created_at": to_iso(self.created_at),
            "django_version": self.django_version,
            "python_version": self.python_version,
            "hostname": self.hostname,
            "encrypted": self.encrypted,
            "pip": list(self.pip),
            "metadata": dict(self.metadata),
            "run": self.run,
            "storage": self.storage,
            "project": self.project,
            "environment": self.environment,
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            **({"safety": self.safety.to_json()} if self.safety else {}),
        }
        return {**data, "digest": digest_of(data)}

    def to_bytes(self) -> bytes:
        """The manifest's file, UTF-8, for people and programs."""
        return to_sealed(self.to_json())

    @classmethod
    def from_bytes(cls, content: bytes, where: str = MANIFEST_FILENAME) -> Self:
        """Read a manifest's file.

        Raises ``SnapshotIntegrityError`` for anything that isn't a whole, unchanged manifest and
        ``SnapshotVersionError`` for one of a version that is not known; *where* names the file in the message.
        """
        data = from_sealed(content, where, what="a manifest", version=VERSION, most=MAX_MANIFEST_SIZE)
        return cls._from_data(data, where)

    @classmethod
    def _from_data(cls, data: dict[str, Any], where: str) -> Self:
        reader = _Reader(data, where)
        artifacts = tuple(ArtifactRecord.from_json(item, where) for item in reader.take("artifacts", list))
        _refuse_duplicates(artifacts, where)
        safety = reader.take_if_there("safety")
        return cls(
            version=reader.take("version", str),
            name=reader.take("name", str),
            created_at=reader.take_datetime("created_at"),
            run=reader.take("run", str),
            storage=reader.take("storage", str),
            django_version=reader.take("django_version", str),
            python_version=reader.take("python_version", str),
            hostname=reader.take("hostname", str),
            project=reader.take("project", str),
            environment=reader.take("environment", str),
            encrypted=reader.take("encrypted", bool),
            pip=tuple(str(item) for item in reader.take("pip", list)),
            metadata=reader.take("metadata", dict),
            artifacts=artifacts,
            safety=None if safety is None else Safety.from_json(safety, where),
            unknown=reader.rest(),
        )


def plain_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """*value* as a manifest gives it back; raises ``SnapshotConfigurationError`` that names *what* if it can't be kept.

    Found out here, because a manifest is written when all the work is done.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return dict(json.loads(text, object_pairs_hook=unique_keys))
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotConfigurationError(f"{what} must be plain JSON: {error}.") from error


def is_safe_filename(name: str) -> bool:
    """Whether *name* may lie beside a manifest: one part, printable, not a name that the catalog uses itself."""
    # isprintable comes first: a lone surrogate isn't printable, and can't be encoded.
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= _FILENAME_LENGTH
        and not set(name) & set("/\\")
        and name not in {".", ".."}
        and not is_reserved(name)
    )


def is_reserved(name: str) -> bool:
    """Whether *name* is one of the names that the catalog uses itself, or begins as one of those that it writes for a
    moment, in any case of letters."""
    folded = name.casefold()
    return folded.startswith(_RESERVED_BEGINNINGS) or folded in _RESERVED_FILENAMES


def to_iso(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _refuse_duplicates(artifacts: tuple[ArtifactRecord, ...], where: str) -> None:
    filenames = Counter(artifact.filename for artifact in artifacts)
    subjects = Counter(f"{artifact.type!r} {artifact.subject!r}" for artifact in artifacts)
    for value, count in (*filenames.items(), *subjects.items()):
        if count > 1:
            raise SnapshotIntegrityError(f"{where} names {value!r} twice.")


class _Reader:
    """Takes checked fields out of hostile JSON and keeps what nobody asked for."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise SnapshotIntegrityError(f"{where} is not a JSON object.")
        self._data = dict(data)
        self._where = where

    def take(self, name: str, kind: type) -> Any:
        value = self._data.pop(name, None)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SnapshotIntegrityError(f"{self._where} has no proper {name!r}: expected {kind.__name__}.")
        return value

    def take_if_there(self, name: str, otherwise: Any = None) -> Any:
        return self._data.pop(name, otherwise)

    def take_datetime(self, name: str) -> datetime:
        text = self.take(name, str)
        try:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        raise SnapshotIntegrityError(f"{self._where} has no proper {name!r}: expected a time with its zone.")

    def rest(self) -> dict[str, Any]:
        return self._data
