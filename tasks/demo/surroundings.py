"""Where the demo lives and how its project is configured: by the same variables as the service."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DIRECTORY = Path(os.environ.get("DEMO_DIRECTORY") or REPOSITORY / ".demo").absolute()
"""Everything that the demo makes is below this; ``DEMO_DIRECTORY`` names another place."""
MEDIA = DIRECTORY / "media"
SNAPSHOTS = DIRECTORY / "snapshots"
WORKER_LOG = DIRECTORY / "worker.log"
BEAT_LOG = DIRECTORY / "beat.log"

_LOCK = DIRECTORY / "demo.lock"
_SECRET_KEY = DIRECTORY / "secret-key"
_FILLED = DIRECTORY / "filled"
_PREFIXES = ("DATABASE_URL", "CELERY_", "SNAPSHOTS_")
_NAMES = ("SECRET_KEY", "DATA_DIRECTORY", "MEDIA_ROOT", "TIME_ZONE", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS", "HTTPS")


class DemoError(Exception):
    """The demo can't go on, or did not prove what it set out to prove; the message says why."""


class PlaceTakenError(DemoError):
    """The demo's directory is somebody else's."""


def configure() -> None:
    """Set this process's environment, which its programs inherit, and nothing of what it was before."""
    for name in list(os.environ):
        if name.startswith(_PREFIXES) or name.removesuffix("_FILE") in _NAMES:
            del os.environ[name]
    os.environ.update(
        DJANGO_SETTINGS_MODULE="tasks.demo.project.settings",
        SECRET_KEY_FILE=str(_SECRET_KEY),
        DATA_DIRECTORY=str(DIRECTORY),
        DATABASE_URL=f"sqlite:///{DIRECTORY}/default.sqlite3",
        DATABASE_URL_ARCHIVE=f"sqlite:///{DIRECTORY}/archive.sqlite3",
        CELERY_BROKER_POLLING_INTERVAL="0.1",
        SNAPSHOTS_LOCATION=str(SNAPSHOTS),
        SNAPSHOTS_PROJECT="demo",
        MEDIA_ROOT=str(MEDIA),
    )


@contextlib.contextmanager
def claimed() -> Iterator[None]:
    """Make the demo's directory if it isn't there, and keep every other demo out of it."""
    if DIRECTORY.exists() and any(DIRECTORY.iterdir()) and not _LOCK.exists():
        raise PlaceTakenError(f"{DIRECTORY} holds something else than a demo; name another place by DEMO_DIRECTORY.")
    DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PlaceTakenError(f"Another demo runs in {DIRECTORY}; stop that first.") from error
        yield


def start_anew() -> None:
    """Remove what an earlier demo left, and make a new secret key."""
    for path in DIRECTORY.iterdir():
        if path == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    MEDIA.mkdir()
    _SECRET_KEY.touch(mode=0o600, exist_ok=False)
    _SECRET_KEY.write_text(secrets.token_urlsafe(50))


def filled() -> bool:
    """Whether an earlier demo has left a project with its data."""
    return _FILLED.exists()


def mark_filled(*, is_so: bool = True) -> None:
    """Remember whether the project has its data."""
    if is_so:
        _FILLED.touch()
    else:
        _FILLED.unlink(missing_ok=True)
