"""``manage.py`` of the test project: with its Celery app, as a project's ``__init__`` imports it."""

import os
import sys

from tests.celery_app import app

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.browser.settings")
    app.set_default()
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
