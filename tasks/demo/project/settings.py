"""The demo project's settings: the service's, and two apps with models of their own."""

from tasks.settings import *  # noqa: F403
from tasks.settings import INSTALLED_APPS as SERVICE_APPS

INSTALLED_APPS = [*SERVICE_APPS, "tasks.demo.shop", "tasks.demo.archive"]
DATABASE_ROUTERS = ["tasks.demo.project.routers.ArchiveRouter"]
