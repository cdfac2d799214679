"""The test project; ``tests/project`` holds its models. Worker processes of a test get theirs by environment."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

BASE = Path(os.environ.get("SNAPSHOTS_TEST_DIRECTORY") or Path(tempfile.gettempdir()) / "django-snapshots-tests")

SECRET_KEY = "only for tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # one that takes no time
USE_TZ = True
TIME_ZONE = "UTC"
DATABASES = json.loads(os.environ.get("SNAPSHOTS_TEST_DATABASES", "null")) or {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    *(["django_celery_results"] if os.environ.get("SNAPSHOTS_TEST_RESULTS") == "django-db" else []),
    "django_snapshots",
    "tests.project",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
MEDIA_ROOT = os.environ.get("SNAPSHOTS_TEST_MEDIA", str(BASE / "media"))
MEDIA_URL = "media/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SNAPSHOTS = json.loads(os.environ.get("SNAPSHOTS_TEST_SNAPSHOTS", "null")) or {
    "STORAGE": {
        "BACKEND": "django_snapshots.storage.LocalFileSystemBackend",
        "OPTIONS": {"location": str(BASE / "snapshots")},
    },
}
CELERY_BROKER_URL = os.environ.get("SNAPSHOTS_TEST_BROKER", "memory://")
CELERY_RESULT_BACKEND = os.environ.get("SNAPSHOTS_TEST_RESULTS") or None
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Whatever else a test sets: a transport with its options, limits.
globals().update(
    {f"CELERY_{name}": value for name, value in json.loads(os.environ.get("SNAPSHOTS_TEST_CELERY", "{}")).items()}
)
