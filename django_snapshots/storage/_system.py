"""Two calls of Linux that Python has no function for."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def rename_exclusively(src_directory: int, src: str, dst_directory: int, dst: str) -> None:
    """Rename, or raise ``FileExistsError`` if *dst* exists, in one step that nobody can come between.

    File systems that can't (NFS) get a hard link and an unlink: as safe for *dst*, but for a moment both names exist.
    """
    if _renameat2(src_directory, src, dst_directory, dst):
        return
    try:
        os.link(src, dst, src_dir_fd=src_directory, dst_dir_fd=dst_directory, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        reason = "the file system can neither rename without replacing nor make hard links"
        raise OSError(error.errno, f"{reason} ({error.strerror})") from error
    try:
        os.unlink(src, dir_fd=src_directory)
    except FileNotFoundError:
        # Somebody else moved it at the same time, to another name.
        os.unlink(dst, dir_fd=dst_directory)
        raise


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Let the kernel begin to write these bytes to the disk; neither waits for them nor reports their errors."""
    call = _function("sync_file_range")
    if call is not None:
        call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def _renameat2(src_directory: int, src: str, dst_directory: int, dst: str) -> bool:
    """Whether it is done; False where kernel, C library or file system don't have it."""
    call = _function("renameat2")
    if call is None:
        return False
    if call(src_directory, os.fsencode(src), dst_directory, os.fsencode(dst), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), src, None, dst)


@cache
def _function(name: str) -> Any | None:
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
