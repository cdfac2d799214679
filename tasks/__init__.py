"""The deployable service: Celery workers, beat and the admin, configured by environment variables."""
