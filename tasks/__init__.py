"""The deployable service: Celery workers, beat and the admin, configured by environment variables (``settings.py``)."""

from tasks.celery import app

__all__ = ["app"]
