"""The archive in the admin."""

from __future__ import annotations

from django.contrib import admin

from tasks.demo.archive.models import ArchivedOrder

admin.site.register(ArchivedOrder)
