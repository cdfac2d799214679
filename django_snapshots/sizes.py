"""Numbers of bytes for people, the same in the command and in the admin."""

from __future__ import annotations


def human_size(count: int) -> str:
    """*count* bytes in the largest unit that leaves it above 1: ``1.2 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
