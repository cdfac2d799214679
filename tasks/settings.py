"""Django's settings for the service, read from environment variables.

Every variable can also come from a file: ``SECRET_KEY_FILE=/run/secrets/secret_key`` in place of ``SECRET_KEY``.
Lists are separated by commas; a password in a URL is percent-encoded.

=============================== ============================ ==========================================================
variable                        default                      meaning
=============================== ============================ ==========================================================
SECRET_KEY                      (required)                   Django's secret key
DATA_DIRECTORY                  ``data`` beside ``tasks``    where everything goes that has no place of its own
DATABASE_URL                    SQLite in DATA_DIRECTORY     alias ``default``: journal, schedules, users, results
DATABASE_URL_<ALIAS>            (none)                       another alias, in lower case: ``DATABASE_URL_LEGACY`` is
                                                             ``legacy``; as many as you like, of any engine; they are
                                                             snapshotted and restored, nothing of ours is put there
CELERY_BROKER_URL               ``filesystem://localhost``   ``redis://...``, ``amqp://...``; the default is folders
                                                             in DATA_DIRECTORY, for workers of a single host
CELERY_BROKER_POLLING_INTERVAL  1.0                          seconds, of ``filesystem://`` alone
CELERY_RESULT_BACKEND           ``django-db``                where ``.get()`` finds a task's result
CELERY_WORKER_SOFT_SHUTDOWN_    60                           seconds that a worker which gets SIGQUIT leaves its steps
TIMEOUT                                                      to end by themselves, before it gives them up
SNAPSHOTS_LOCATION              ``snapshots`` in             the directory that the snapshots lie in; all workers must
                                DATA_DIRECTORY               see the same one
SNAPSHOTS_QUEUE                 ``snapshots``                the queue that these workers and tasks use
SNAPSHOTS_PROJECT               ``tasks``                    a snapshot of another project is restored only when told
SNAPSHOTS_ENVIRONMENT           (empty)                      such as ``production``; the same holds for it
SNAPSHOTS_DATABASES             all                          aliases that a snapshot includes
SNAPSHOTS_ARTIFACTS             database, environment, and   what a snapshot includes
                                media if there is MEDIA_ROOT
SNAPSHOTS_SCHEDULE              (none)                       cron's five fields, such as ``0 3 * * *``, in TIME_ZONE:
                                                             when beat has a snapshot taken
SNAPSHOTS_RETENTION             (none)                       which of these snapshots stay, such as
                                                             ``keep_daily=14,keep_monthly=12``; without it all do
SNAPSHOTS_ALLOW_RESTORE         true                         whether these workers may restore
SNAPSHOTS_TEMPORARY_DIRECTORY   the system's                 for connectors that need a private copy (SQLite)
MEDIA_ROOT                      (none)                       the media files' directory
ALLOWED_HOSTS                   localhost, 127.0.0.1, [::1]  host names that the admin answers to
CSRF_TRUSTED_ORIGINS            (none)                       such as ``https://snapshots.example``
HTTPS                           false                        true behind a proxy that speaks HTTPS and sets
                                                             ``X-Forwarded-Proto``: cookies travel by HTTPS alone
TIME_ZONE                       ``UTC``                      for people and for beat's schedules
=============================== ============================ ==========================================================

Passed as is to Django and Celery: nothing else. A project with models of its own has its own settings, where
``django_snapshots`` is one more app; ``tasks/demo/project/settings.py`` shows how to build on these.
"""

from __future__ import annotations

from pathlib import Path

from django_snapshots.filesystem_broker import TRANSPORT, transport_options
from tasks.environment import Environment

_env = Environment()

SECRET_KEY = _env.secret_key()

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIRECTORY = _env.path("DATA_DIRECTORY", BASE_DIR / "data")
DATA_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)

DEBUG = False
ALLOWED_HOSTS = _env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = _env.list("CSRF_TRUSTED_ORIGINS", default=[])
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _env.bool("HTTPS", default=False)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SESSION_COOKIE_SECURE else None

DATABASES = _env.databases(default=f"sqlite:///{DATA_DIRECTORY}/service.sqlite3")
DATABASE_ROUTERS = ["tasks.routers.OwnTablesInDefault"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "django_celery_results",
    "django_snapshots",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
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
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
ROOT_URLCONF = "tasks.urls"
WSGI_APPLICATION = "tasks.wsgi.application"
STATIC_URL = "static/"
# The web processes serve the admin's static files themselves, from where the packages have them: nothing is collected,
# so nothing is out of date after an upgrade.
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
USE_TZ = True
TIME_ZONE = _env.text("TIME_ZONE", "UTC")

MEDIA_ROOT = _env.text("MEDIA_ROOT", "")
MEDIA_URL = "media/"

_schedule, _retention = _env.text("SNAPSHOTS_SCHEDULE", ""), _env.numbers("SNAPSHOTS_RETENTION") or None
SNAPSHOTS_QUEUE = _env.text("SNAPSHOTS_QUEUE", "snapshots")
SNAPSHOTS = {
    "STORAGE": {
        "BACKEND": "django_snapshots.storage.LocalFileSystemBackend",
        "OPTIONS": {"location": str(_env.path("SNAPSHOTS_LOCATION", DATA_DIRECTORY / "snapshots"))},
    },
    "DATABASES": _env.list("SNAPSHOTS_DATABASES", default=None),
    "ARTIFACTS": _env.list(
        "SNAPSHOTS_ARTIFACTS", default=["database", *(["media"] if MEDIA_ROOT else []), "environment"]
    ),
    "SCHEDULES": {"scheduled": {"cron": _schedule, **({"retention": True} if _retention else {})}}
    if _schedule
    else None,
    "RETENTION": _retention,
    "QUEUE": SNAPSHOTS_QUEUE,
    "PROJECT": _env.text("SNAPSHOTS_PROJECT", "tasks"),
    "ENVIRONMENT": _env.text("SNAPSHOTS_ENVIRONMENT", ""),
    "ALLOW_RESTORE": _env.bool("SNAPSHOTS_ALLOW_RESTORE", default=True),
    "TEMPORARY_DIRECTORY": _env.text("SNAPSHOTS_TEMPORARY_DIRECTORY", "") or None,
}

CELERY_BROKER_URL = _env.text("CELERY_BROKER_URL", "filesystem://localhost")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
if CELERY_BROKER_URL.startswith("filesystem:"):
    CELERY_BROKER_TRANSPORT = TRANSPORT
    CELERY_BROKER_TRANSPORT_OPTIONS = transport_options(
        DATA_DIRECTORY / "broker", polling_interval=_env.float("CELERY_BROKER_POLLING_INTERVAL", default=1.0)
    )
CELERY_RESULT_BACKEND = _env.text("CELERY_RESULT_BACKEND", "django-db")
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# A beat that is killed forgets no run that it has sent.
CELERY_BEAT_SYNC_EVERY = 1
CELERY_TIMEZONE = TIME_ZONE
# These workers have nothing else to do, so they consume the queue without being told by -Q.
CELERY_TASK_DEFAULT_QUEUE = SNAPSHOTS_QUEUE
# A step takes from seconds to hours: a worker must not hold one back while another is idle.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = CELERY_BROKER_URL.startswith(("redis:", "rediss:"))
# SIGQUIT: what has not ended after this time is given up, for another worker to take. SIGTERM waits without limit.
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = _env.float("CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT", default=60.0)
# No message waits in these workers for a later time, so an idle one needn't wait before it ends.
CELERY_WORKER_ENABLE_SOFT_SHUTDOWN_ON_IDLE = False
# Its message is acknowledged when a step begins, so a broker that restarts costs no dump of hours.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
