"""``python -m tasks COMMAND``: Django's management commands for the service, such as ``migrate`` and ``snapshots``."""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tasks.settings")
    execute_from_command_line(["python -m tasks", *sys.argv[1:]])
