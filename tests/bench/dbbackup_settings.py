"""The settings of the project that django-dbbackup backs up, in an environment of its own."""

import json
import os

SECRET_KEY = "only for the benchmark"
DATABASES = json.loads(os.environ["BENCH_DATABASES"])
INSTALLED_APPS = ["dbbackup"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "dbbackup": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": os.environ["BENCH_DIRECTORY"]},
    },
}
