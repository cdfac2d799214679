"""A project's own artifact kinds: what ``SNAPSHOTS["ARTIFACTS"]`` names besides ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from django_snapshots.artifacts.environment import EnvironmentArtifact
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.connectors import foreign
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotConfigurationError, SnapshotError
from django_snapshots.pipeline.stream import closing_chunks
from django_snapshots.pluggable import instance_of
from django_snapshots.replaced import Finding
from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, Target

BUILT_IN = ("database", "media", "environment")
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEY = 'SNAPSHOTS["ARTIFACTS"]'


@runtime_checkable
class FileKind(Protocol):
    """The simple tier of an artifact kind: dumps itself to a file and restores itself from one. No base class is
    needed. Its dump goes through a private temporary directory, and its restore is not atomic."""

    type: str
    """Names the kind in settings, on the command line and in the manifest; ``[a-z][a-z0-9_]*``."""

    def dump(self, dest: Path) -> dict[str, Any]:
        """Write everything to the file *dest*; return extra metadata for the manifest, such as ``{"format": "db"}``."""

    def restore(self, src: Path) -> None:
        """Make it what the file *src* says."""


def own_kind(named: object) -> ArtifactKind:
    """The kind that *named* is: an instance, a class, or the dotted path of either.

    Raises ``SnapshotConfigurationError``.
    """
    kind = _built(named)
    _check_type(kind)
    if isinstance(kind, ArtifactKind):
        return kind
    if isinstance(kind, FileKind):
        return FileKindAdapter(kind)
    missing = [name for name in ("dump", "restore") if not callable(getattr(kind, name, None))]
    raise SnapshotConfigurationError(
        f"{_KEY} names {type(kind).__qualname__}, which is no artifact kind: it has no method "
        f"{' and no method '.join(missing)}."
    )


def _built(named: object) -> object:
    if isinstance(named, str) and "." not in named:
        raise SnapshotConfigurationError(
            f"{_KEY} names {named!r}; the kinds are: {', '.join(BUILT_IN)}, and yours by the dotted path of their "
            "class."
        )
    return instance_of(named, _KEY)


def _check_type(kind: object) -> None:
    name, type_ = type(kind).__qualname__, getattr(kind, "type", None)
    if type_ is None:
        raise SnapshotConfigurationError(
            f'{_KEY} names {name}, which has no attribute type: the word that names the kind, such as "search_index".'
        )
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
        raise SnapshotConfigurationError(
            f"{_KEY} names {name}, whose type is {type_!r}; use lower-case letters, digits and _, beginning with a "
            "letter, at most 64 characters."
        )
    if type_ in BUILT_IN and not isinstance(kind, MediaArtifact | EnvironmentArtifact):
        raise SnapshotConfigurationError(
            f"{_KEY} names {name}, whose type {type_!r} is that of a kind that is built in; choose another word."
        )


class FileKindAdapter:
    """A kind of two methods as an ``ArtifactKind`` with one subject, which is called like the kind."""

    def __init__(self, kind: FileKind) -> None:
        self.kind = kind
        self.type = kind.type
        self.compress = bool(getattr(kind, "compress", True))

    def subjects(self) -> Sequence[str]:
        """The kind itself."""
        return [self.type]

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Let it dump into a private file, and offer that. Raises ``SnapshotArtifactError``."""
        return self._open_dump(request)

    @contextlib.contextmanager
    def _open_dump(self, request: DumpRequest) -> Iterator[Dump]:
        theirs = self._foreign()
        with request.temporary_directory() as directory:
            path = directory / f"{self.type}.{foreign.DEFAULT_SUFFIX}"
            started_at = datetime.now(UTC)
            metadata = theirs.metadata(theirs.call("dump", lambda: self.kind.dump(path)))
            theirs.require_content(path)
            with closing_chunks(foreign.read(path)) as chunks:
                yield Dump(
                    suffix=foreign.suffix(metadata), started_at=started_at, chunks=chunks, metadata=lambda: metadata
                )

    def target(self, subject: str) -> Target:
        """What only the project knows, so it is never called empty."""
        return Target(
            name=self.type,
            description=f"{self.type}, which {type(self.kind).__name__} restores in place and not atomically",
            empty=False,
            identity=self.identity(self.type),
        )

    def identity(self, subject: str) -> str:
        """What the kind's own method ``identity`` says, if it has one; else nothing, and then nothing locks it.

        Raises ``SnapshotArtifactError`` if that method fails or returns no text.
        """
        ask = getattr(self.kind, "identity", None)
        return self._foreign().identity(ask) if callable(ask) else ""

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Write *source* to a private file; the kind is called by ``switch``, after the safety copy asked for here.

        A drill goes no further than the file: only the kind can read it.
        """
        with ExitStack() as stack:
            directory = stack.enter_context(request.temporary_directory())
            path = directory / f"{self.type}.{foreign.DEFAULT_SUFFIX}"
            theirs = self._foreign()
            theirs.spool(source, path)
            if not request.drill:
                request.safety()
            return _PreparedFile(self.kind, theirs, path, stack.pop_all())
        raise AssertionError  # an ExitStack that swallows an error would be a defect

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """What such a restore can't promise."""
        name = type(self.kind).__name__
        text = f"{name} restores {self.type!r} only in place, so a drill of it proves the stored file and no more."
        if not request.drill:
            text = (
                f"{name} restores {self.type!r} in place, and not as a whole or not at all: if it is interrupted, the "
                "safety snapshot is what brings the old state back. It keeps no writer out."
            )
        return [Finding(text=text, stops=False)]

    def _foreign(self) -> foreign.Foreign:
        name = type(self.kind).__name__
        return foreign.Foreign(
            who=f"the artifact kind {name}", subject=self.type, thing=self.type, error=SnapshotArtifactError
        )


class _PreparedFile:
    """A file that waits for its kind's ``restore``."""

    def __init__(self, kind: FileKind, theirs: foreign.Foreign, path: Path, stack: ExitStack) -> None:
        self._kind = kind
        self._theirs = theirs
        self._path = path
        self._stack = stack

    def check(self) -> None:
        """There is nothing to compare: only the kind can read the file, whose digests are proved."""

    def switch(self) -> None:
        """Call ``restore``. When it fails, the target is in whatever state it left; the message says so."""
        failure = self._restore()
        if failure is not None:
            raise failure

    def _restore(self) -> SnapshotError | None:
        try:
            self._theirs.call("restore", lambda: self._kind.restore(self._path))
        except SnapshotError as error:
            return type(error)(
                f"{error} {type(self._kind).__name__} restores in place, so {self._kind.type!r} may be half restored; "
                "restore the safety snapshot, or this one again."
            )
        return None

    def roll_back(self) -> None:
        """A restore of two methods can't be taken back."""
        raise SnapshotError(
            f"{type(self._kind).__name__} restored {self._kind.type!r} and can't take that back; restore the safety "
            "snapshot to get the old state back."
        )

    def discard(self) -> None:
        """Remove the private file."""
        self._stack.close()
