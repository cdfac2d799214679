"""The admin for a WSGI server; that or a proxy before it serves ``STATIC_ROOT`` at ``/static/``."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tasks.settings")

application = get_wsgi_application()
