"""The media files: ``MEDIA_ROOT`` as one tar, restored by building a tree beside it and switching."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from django_snapshots.artifacts import media_kept
from django_snapshots.artifacts.file_system import sync_file_system
from django_snapshots.artifacts.media_contents import look_through
from django_snapshots.artifacts.media_dump import archive
from django_snapshots.artifacts.media_merge import merge
from django_snapshots.artifacts.media_preflight import findings
from django_snapshots.artifacts.media_reader import ArchiveReader
from django_snapshots.artifacts.media_root import media_root
from django_snapshots.artifacts.media_switch import Staging
from django_snapshots.artifacts.media_tar import joined
from django_snapshots.artifacts.media_unpack import Unpacked, Unpacker
from django_snapshots.artifacts.media_walk import DIRECTORY_FLAGS, Findings, is_own_name
from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.replaced import Beside, Finding, Outcome
from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, SwitchRank, Target

SUBJECT = "media"


class MediaArtifact:
    """Files, directories and links below ``MEDIA_ROOT``, with modes, owners' numbers and times.

    Not kept: extended attributes and ACLs, which names are hard links of one file, and what is neither file, directory
    nor link. Links that lead out of ``MEDIA_ROOT`` are left out. Everything left out is named in the metadata.
    """

    type = "media"

    def __init__(self, *, unreadable: Literal["fail", "report"] = "fail", location: str | Path | None = None) -> None:
        """*unreadable*: ``"fail"`` refuses a snapshot that would lack files this user can't read; ``"report"`` makes
        it without them and names them. *location* is taken instead of ``MEDIA_ROOT``."""
        if unreadable not in ("fail", "report"):
            raise SnapshotConfigurationError(
                f'MediaArtifact(unreadable={unreadable!r}) is not known; it is "fail" or "report".'
            )
        self._report_unreadable = unreadable == "report"
        self.location = location

    def subjects(self) -> Sequence[str]:
        return [SUBJECT]

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Open ``MEDIA_ROOT``; it is walked while the chunks are read. Raises ``SnapshotConfigurationError`` if it is
        missing, ``SnapshotBusyError`` while a restore has stopped in the middle of its moves."""
        return self._open_dump()

    @contextlib.contextmanager
    def _open_dump(self) -> Iterator[Dump]:
        root = self._whole_root()
        found = Findings(report_unreadable=self._report_unreadable)
        descriptor = _opened(root)
        try:
            stream = archive(descriptor, os.fsencode(root), found)
            chunks = joined(stream)
            status = os.fstat(descriptor)
            with contextlib.closing(stream), contextlib.closing(chunks):
                yield Dump(
                    suffix="tar",
                    started_at=datetime.now(UTC),
                    chunks=chunks,
                    metadata=lambda: _metadata(found, status),
                )
        finally:
            os.close(descriptor)

    def target(self, subject: str) -> Target:
        """``MEDIA_ROOT``; empty if it is missing or has no entries."""
        root = media_root(self.location)
        name = str(Path(root.configured))
        if not root.path.exists():
            description, empty = f"media directory {name} (missing)", True
        else:
            description, empty = f"media directory {name}", _empty(root.path)
        return Target(name=name, description=description, empty=empty, identity=self.identity(subject))

    def identity(self, subject: str) -> str:
        """The real path of ``MEDIA_ROOT``: a restore puts another directory, with another inode, in its place.

        Which host it is on is left out: hosts may share the disk, and one lock too many only makes somebody wait.
        Raises ``SnapshotConfigurationError`` where ``target`` does.
        """
        return f"media:{media_root(self.location).path}"

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Unpack the archive into a staging directory on the file system of ``MEDIA_ROOT``.

        Raises ``SnapshotIntegrityError`` for an archive that is damaged or hostile, ``SnapshotPreflightError`` where
        there is no room or no right, ``SnapshotArtifactError`` where a file can't be written.
        """
        if request.drill:
            return _drilled(source, request)
        staging = Staging(media_root(self.location).path, request)
        if not request.mark:
            request.safety()
        try:
            _require_room(staging.new, source.metadata)
            unpacked = _unpack(staging.new, source, request)
            if request.merge:
                _merge(staging)
            _sync(staging.new)
        except BaseException:
            staging.discard()
            raise
        if unpacked.other_owners:
            request.report(
                f"{unpacked.other_owners} media files belonged to other users; they belong to user {os.geteuid()} now, "
                "because only root may give files away."
            )
        return PreparedMedia(staging=staging, unpacked=unpacked, metadata=source.metadata)

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterable[Finding]:
        """As ``Preflights.preflight``."""
        return findings(self.location, source, request)

    def keeps(self, subject: str) -> bool:
        """Always: what is replaced is renamed, which takes no room."""
        return True

    def beside(self, subject: str) -> Sequence[Beside]:
        """As ``KeepsReplaced.beside``."""
        return media_kept.beside(media_root(self.location).path)

    def settle(self, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
        """As ``KeepsReplaced.settle``."""
        return media_kept.settle(media_root(self.location).path, mark, noted)

    def bring_back(self, subject: str, mark: str, request: RestoreRequest) -> Prepared:
        """As ``KeepsReplaced.bring_back``: the kept tree itself goes back, without a copy."""
        if not request.mark:
            raise SnapshotArtifactError("A kept tree is brought back under a mark: what it replaces is kept too.")
        staging = Staging(media_root(self.location).path, request, kept=mark)
        return PreparedMedia(staging=staging, unpacked=Unpacked(), metadata={})

    def remove(self, subject: str, mark: str) -> None:
        """As ``KeepsReplaced.remove``."""
        media_kept.remove(media_root(self.location).path, mark)

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Read the archive to its end and write nothing; refuse what a restore would refuse."""
        return look_through(source, request.processes).as_metadata()

    def _whole_root(self) -> Path:
        root = media_root(self.location)
        media_kept.require_whole(root.path)
        if not root.path.exists():
            raise SnapshotConfigurationError(
                f"The media directory {root.configured} is missing. If its disk isn't mounted, mount it; if there are "
                'no media files yet, make the directory; else set MEDIA_ROOT, or leave "media" out of ARTIFACTS.'
            )
        return root.path


class PreparedMedia:
    """The unpacked tree beside ``MEDIA_ROOT``, on its way into its place."""

    switch_rank = SwitchRank.REVERSIBLE

    def __init__(self, *, staging: Staging, unpacked: Unpacked, metadata: Mapping[str, Any]) -> None:
        self._staging = staging
        self._unpacked = unpacked
        self._metadata = metadata

    def check(self) -> None:
        """Compare the counts and bytes that were unpacked with the manifest's."""
        _compare(self._unpacked, self._metadata)

    def switch(self) -> None:
        """One atomic exchange with ``MEDIA_ROOT`` where the system has it; see ``media_switch``."""
        self._staging.switch(self._dress_missing)

    def roll_back(self) -> None:
        """The directory that was replaced, back in its place."""
        self._staging.roll_back()

    def discard(self) -> None:
        """Remove the staging directory, and with it the files that were replaced, unless they are kept under a mark."""
        self._staging.discard()

    def _dress_missing(self, directory: Path) -> None:
        """A root that was missing gets the mode, and if we may the owner, of the one that was dumped."""
        user, group = self._metadata.get("user"), self._metadata.get("group")
        if isinstance(user, int) and isinstance(group, int):
            with contextlib.suppress(PermissionError):
                os.chown(directory, user, group)
        directory.chmod(_permissions(self._metadata.get("mode")))


class _Drilled:
    """A tree in a temporary directory, which is only compared with the manifest."""

    def __init__(self, unpacked: Unpacked, metadata: Mapping[str, Any], stack: ExitStack) -> None:
        self._unpacked = unpacked
        self._metadata = metadata
        self._stack = stack

    def check(self) -> None:
        """Compare the counts and bytes that were unpacked with the manifest's."""
        _compare(self._unpacked, self._metadata)

    def switch(self) -> None:
        raise SnapshotArtifactError("A drill of the media files is only looked at; it is never switched.")

    def roll_back(self) -> None:
        raise SnapshotArtifactError("A drill of the media files has changed nothing.")

    def discard(self) -> None:
        """Remove the temporary directory."""
        self._stack.close()


def _drilled(source: Source, request: RestoreRequest) -> Prepared:
    with ExitStack() as stack:
        directory = stack.enter_context(request.temporary_directory()) / "media"
        directory.mkdir(mode=0o700)
        _require_room(directory, source.metadata)
        unpacked = _unpack(directory, source, request)
        return _Drilled(unpacked, source.metadata, stack.pop_all())
    raise AssertionError  # an ExitStack that swallows an error would be a defect


def _compare(unpacked: Unpacked, metadata: Mapping[str, Any]) -> None:
    for key, found in unpacked.counts.as_metadata().items():
        expected = metadata.get(key)
        if expected is not None and expected != found:
            raise SnapshotIntegrityError(
                f"The media archive holds {found} {key}, but the manifest says {expected}. MEDIA_ROOT was not touched."
            )


def _merge(staging: Staging) -> None:
    try:
        merge(*map(os.fsencode, (staging.root, staging.new, staging.new.parent)))
    except OSError as error:
        raise SnapshotArtifactError(
            f"The media files that are to stay could not be put beside those of the snapshot: {error}. {staging.root} "
            "was not touched."
        ) from error


def _opened(root: Path) -> int:
    try:
        return os.open(root, DIRECTORY_FLAGS)
    except OSError as error:
        raise SnapshotArtifactError(
            f"The media directory {root} can't be opened: {error.strerror}. Let the worker's user read it."
        ) from error


def _metadata(findings: Findings, root: os.stat_result) -> dict[str, Any]:
    if not findings.complete:
        raise SnapshotArtifactError("The media archive was not read to its end, so nothing can be said about it.")
    return {
        **findings.counts.as_metadata(),
        "allocated": findings.allocated,
        "mode": f"{stat.S_IMODE(root.st_mode):04o}",
        "user": root.st_uid,
        "group": root.st_gid,
        "warnings": findings.warnings,
        "warning_count": findings.warning_count,
        "unreadable": findings.unreadable,
        "unreadable_count": findings.unreadable_count,
    }


def _empty(root: Path) -> bool:
    with os.scandir(root) as entries:
        return all(is_own_name(os.fsencode(entry.name)) for entry in entries)


def _require_room(directory: Path, metadata: Mapping[str, Any]) -> None:
    needed = metadata.get("allocated")
    state = os.statvfs(directory)
    free = state.f_bavail * state.f_frsize
    if isinstance(needed, int) and needed > free:
        raise SnapshotPreflightError(
            f"The media files need {needed} bytes beside the ones that are there, and only {free} are free on the file "
            f"system of {directory.parent.parent}; make room."
        )


def _unpack(directory: Path, source: Source, request: RestoreRequest) -> Unpacked:
    def check() -> None:
        if request.processes.ended:
            raise SnapshotCancelled("The restore of the media files was ended; MEDIA_ROOT was not touched.")

    chunks = source.open()
    try:
        reader = ArchiveReader(chunks, source.filename)
        return Unpacker(reader, source.metadata, check).unpack(os.fsencode(directory))
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def _sync(directory: Path) -> None:
    try:
        sync_file_system(directory)
    except OSError as error:
        raise SnapshotArtifactError(
            f"The restored media files could not be written to the disk: {error}. MEDIA_ROOT was not touched."
        ) from error


def _permissions(text: object) -> int:
    """The mode that a manifest gives as octal digits; 0755 if it gives none that can be used."""
    with contextlib.suppress(ValueError):
        return int(str(text), 8) & 0o777
    return 0o755
