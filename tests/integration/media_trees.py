"""Trees of files on disk, as values that can be made and compared, and the moves of a dump and a restore."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from django.test import override_settings

from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, Prepared, RestoreRequest, Source

NOBODY = 65534


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Without root's rights, if the tests are run by root: it is refused nothing otherwise."""
    if os.geteuid() != 0:
        yield
        return
    # Loaded when they are first needed, by whom Python's own library may not be readable to then.
    codecs.lookup("ascii")
    importlib.import_module("sqlite3.dump")
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter and that belongs to the ordinary user."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def tree(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything below *root*: path -> kind, mode, owner, time, content. By walking, not by what we count."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for parent, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            facts: tuple[Any, ...] = (stat.S_IFMT(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
            if stat.S_ISLNK(status.st_mode):
                facts += (os.readlink(path),)
            else:
                facts += (stat.S_IMODE(status.st_mode) & 0o777,)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    facts += (file.read(),)
            found[os.path.relpath(path, os.fsencode(root))] = facts
    return found


def dump(artifact: MediaArtifact | None = None) -> tuple[bytes, dict[str, Any]]:
    """The archive of the ``MEDIA_ROOT`` of this moment, and its metadata."""
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with (artifact or MediaArtifact()).open_dump("media", request) as opened:
            content = b"".join(opened.chunks)
            return content, dict(opened.metadata())


class Restore:
    """One restore of *content*, in its moves; keeps the sentences of the report and whether the source was read."""

    def __init__(
        self, content: bytes, metadata: dict[str, Any] | None = None, chunk: int = 4096, **options: Any
    ) -> None:
        self.options = options
        self.reports: list[str] = []
        self.read_to_end = False
        self.processes = Processes()
        self._pieces = [content[start : start + chunk] for start in range(0, len(content), chunk)]
        self._metadata = metadata or {}

    @property
    def source(self) -> Source:
        return Source(filename="media.tar.zst", metadata=self._metadata, open=self._chunks)

    @property
    def request(self) -> RestoreRequest:
        return RestoreRequest(
            processes=self.processes,
            temporary_directory=private_directory,
            report=self.reports.append,
            **self.options,
        )

    def prepare(self) -> Prepared:
        return MediaArtifact().prepare("media", self.source, self.request)

    def bring_back(self, mark: str) -> Prepared:
        return MediaArtifact().bring_back("media", mark, self.request)

    def _chunks(self) -> Iterator[bytes]:
        yield from self._pieces
        self.read_to_end = True


def restore(content: bytes, metadata: dict[str, Any] | None = None, chunk: int = 4096) -> Restore:
    """Every move of a restore that goes well."""
    moves = Restore(content, metadata, chunk)
    prepared = moves.prepare()
    prepared.check()
    prepared.switch()
    prepared.discard()
    assert moves.read_to_end
    return moves


def media(root: Path) -> override_settings:
    return override_settings(MEDIA_ROOT=str(root))


def member(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive of the standard library's, with whatever members somebody with bad intentions would choose."""
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, BytesIO(content))
    return target.getvalue()
