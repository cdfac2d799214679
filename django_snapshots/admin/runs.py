"""The journal in the admin: to look at, never to edit; a run's page shows how far it is."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_snapshots import execution, runs, working
from django_snapshots import undo as undoing
from django_snapshots.admin.access import ReadOnly, may, may_cancel, require, require_view, submit
from django_snapshots.admin.forms import UndoForm
from django_snapshots.admin.progress import progress_of, snapshot_url
from django_snapshots.admin.shown import run_badge, shown_duration, shown_json
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import FINAL_STATES, Kind, Run, StoredSnapshot
from django_snapshots.plan import Request

_ACTION = "admin/django_snapshots/storedsnapshot/action.html"


@admin.register(Run)
class RunAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Runs, the newest first."""

    list_display = ("created_at", "kind", "snapshot", "shown_state", "requested_by", "requested_from", "duration")
    list_filter = ("kind", "state", "requested_from", "created_at")
    search_fields = ("name", "requested_by", "error")
    date_hierarchy = "created_at"
    list_per_page = 50
    readonly_fields = ("asked_for",)
    fieldsets = (
        ("Who asked for what", {"fields": ("kind", "asked_for", "requested_by", "requested_from", "created_at")}),
        (
            "For support",
            {
                "classes": ("collapse",),
                "fields": (
                    *("id", "task_id", "requested_by_key", "storage_label", "storage_id", "holder", "error_type"),
                    *("cancel_requested_at", "cancel_requested_by", "touched_at"),
                ),
            },
        ),
    )

    class Media:
        """The style of states."""

        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("django_snapshots/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        """From the database that is written to: a replica may not know yet how far a run is."""
        return super().get_queryset(request).using(runs.alias())

    def get_urls(self) -> list[URLPattern]:
        """With the page's own end points."""
        views = (self.progress_view, self.cancel_view, self.undo_view)
        progress, cancel, undo = (self.admin_site.admin_view(view) for view in views)
        return [
            path("<uuid:run_id>/progress/", progress, name="django_snapshots_run_progress"),
            path("<uuid:run_id>/cancel/", cancel, name="django_snapshots_run_cancel"),
            path("<uuid:run_id>/undo/", undo, name="django_snapshots_run_undo"),
            *super().get_urls(),
        ]

    def progress_view(self, request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
        """How far a run is, for the script of its page."""
        require_view(request)
        run = self._run(request, run_id)
        urls = {"snapshot": snapshot_url(run, self.admin_site.name), "undo": self._undo_url(request, run)}
        return JsonResponse({**progress_of(run), **urls})

    def cancel_view(self, request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
        """Cancel a run, by the button on its page. Needs the journal alone, no broker."""
        if not may_cancel(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self._run(request, run_id)
        try:
            run = working.cancel_run(run_id, by=request.user.get_username())
        except SnapshotError as error:
            messages.error(request, str(error))
        else:
            ended = run.state in FINAL_STATES
            messages.success(
                request, "The run is cancelled." if ended else "The run is told to end; it does so within seconds."
            )
        return HttpResponseRedirect(self._page_of(run_id, "change"))

    def undo_view(self, request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
        """Undo a restore, with the name of everything that is replaced typed."""
        require(request, "restore")
        run = self._run(request, run_id)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "opts": StoredSnapshot._meta,
            "media": self.media,
            "title": f"Undo the {run.kind} of {run.name}" if run.name else f"Undo the {run.kind}",
            "button": "Undo",
            "dangerous": True,
            "warning": "What is there now is kept in its turn, so that this can be undone as well.",
        }
        try:
            settings = get_settings()
            _, states = execution.undo_states(settings, Request(undo=run.pk.hex))
            form = UndoForm(
                request.POST if request.method == "POST" else None, targets=undoing.targets(settings, states)
            )
            if request.method == "POST" and form.is_valid():
                wanted = Request.from_json({"undo": run.pk.hex, "confirm": form.names()})
                return HttpResponseRedirect(self._page_of(submit(request, Kind.UNDO, wanted).pk, "change"))
        except SnapshotError as error:
            return TemplateResponse(request, _ACTION, {**context, "problem": str(error)})
        return TemplateResponse(request, _ACTION, {**context, "form": form})

    def _run(self, request: HttpRequest, run_id: uuid.UUID) -> Run:
        run = self.get_queryset(request).filter(pk=run_id).first()
        if run is None:
            raise Http404("There is no such run.")
        return run

    def _undo_url(self, request: HttpRequest, run: Run) -> str:
        """The page that undoes *run*, for who may, if it has replaced something; the page says whether that is still
        kept."""
        replaced = run.kind in runs.SETTLED and run.publishing_at is not None and run.state in FINAL_STATES
        return self._page_of(run.pk, "undo") if replaced and may(request, "restore") else ""

    def _page_of(self, run_id: uuid.UUID, page: str) -> str:
        return reverse(f"admin:django_snapshots_run_{page}", args=(run_id,), current_app=self.admin_site.name)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A run's page."""
        run = self.get_object(request, object_id)
        context = {**(extra_context or {})}
        if run is not None and self.has_view_permission(request):
            context |= {
                "title": f"{Kind(run.kind).label} {run.name}".strip(),
                "subtitle": None,
                "progress": progress_of(run),
                "progress_url": self._page_of(run.pk, "progress"),
                "undo_url": self._undo_url(request, run),
                "cancel_url": self._page_of(run.pk, "cancel") if may_cancel(request) else "",
                "snapshot_url": snapshot_url(run, self.admin_site.name),
            }
        return super().change_view(request, object_id, form_url, context)

    @admin.display(description="state", ordering="state")
    def shown_state(self, run: Run) -> SafeString:
        """The state, with its colour."""
        return run_badge(run)

    @admin.display(description="duration")
    def duration(self, run: Run) -> str:
        """How long it took, or takes."""
        return shown_duration(run)

    @admin.display(description="asked for")
    def asked_for(self, run: Run) -> SafeString:
        """The arguments."""
        return format_html('<pre class="snapshots-text">{}</pre>', shown_json(run.request))

    @admin.display(description="snapshot", ordering="name")
    def snapshot(self, run: Run) -> str:
        """Its name, with the way to its page if it may be there."""
        url = snapshot_url(run, self.admin_site.name)
        return format_html('<a href="{}">{}</a>', url, run.name) if url else run.name
