"""The journal in the admin: to look at, never to edit."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from django_snapshots.models import Run, Step


class _ReadOnly:
    """Nobody adds, changes or deletes a row of the journal by hand."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class StepInline(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """The steps of a run."""

    model = Step
    fields = ("type", "subject", "state", "content_bytes", "started_at", "finished_at", "attempts", "holder", "error")
    extra = 0

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may see the run may see its steps, which have no permission of their own."""
        return request.user.has_perm("django_snapshots.view_run")


@admin.register(Run)
class RunAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Runs, the newest first."""

    list_display = ("id", "kind", "name", "state", "requested_by", "created_at", "finished_at")
    list_filter = ("kind", "state")
    search_fields = ("name", "requested_by", "error")
    date_hierarchy = "created_at"
    inlines = (StepInline,)
