"""Snapshots in the admin, as they lie in storage, and the pages of what can be done with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.paginator import Paginator
from django.db import connections, transaction
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods

from django_snapshots import execution, runs
from django_snapshots import restore as restoring
from django_snapshots.admin import contents
from django_snapshots.admin.access import ACTIONS, ReadOnly, may, require, require_view, submit
from django_snapshots.admin.forms import DeleteForm, PinForm, Place, RestoreForm, TakeForm, VerifyForm
from django_snapshots.admin.shown import shown_json, shown_time
from django_snapshots.catalog import Catalog, Entry, label
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import SnapshotError, SnapshotNotFoundError
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.models import FINAL_STATES, Kind, Run, StoredSnapshot
from django_snapshots.plan import Request

_PER_PAGE = 50
_TEMPLATES = "admin/django_snapshots/storedsnapshot"
View = Callable[..., HttpResponse]


@admin.register(StoredSnapshot)
class StoredSnapshotAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """The snapshots in ``SNAPSHOTS["STORAGE"]``. Nothing of the model's own machinery is used but its place."""

    class Media:
        """The style of states."""

        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("django_snapshots/admin.css",)}

    def get_urls(self) -> list[URLPattern]:
        """The list, a snapshot's page, and the page of each action."""
        pages: tuple[tuple[str, View, str], ...] = (
            ("", self.changelist_view, "changelist"),
            ("take/", self.take_view, "take"),
            ("verify/", self.verify_view, "verify"),
            ("drill/", self.drill_view, "drill"),
            ("restore/", self.restore_view, "restore"),
            ("pin/", self.pin_view, "pin"),
            ("unpin/", self.unpin_view, "unpin"),
            ("delete/", self.delete_snapshots_view, "delete"),
            ("<path:name>/change/", self.snapshot_view, "change"),
        )
        guarded = require_http_methods(["GET", "HEAD", "POST"])
        return [
            path(route, self.admin_site.admin_view(guarded(view)), name=f"django_snapshots_storedsnapshot_{name}")
            for route, view, name in pages
        ]

    # Looking

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list. A POST chooses an action and leads to its page; it changes nothing."""
        require_view(request)
        if request.method == "POST":
            return self._chosen(request)
        context: dict[str, Any] = {"title": "Snapshots", "live": self._live(), **(extra_context or {})}
        try:
            settings = get_settings()
            entries = execution.list_entries(settings)
        except Exception as error:  # noqa: BLE001 - a storage may be anybody's, and may raise anything
            return self._page(request, "change_list.html", storage_error=_explained(error), **context)
        page = Paginator(entries, _PER_PAGE).get_page(request.GET.get("p"))
        return self._page(
            request,
            "change_list.html",
            storage=label(settings.storage),
            page=page,
            rows=contents.rows(list(page.object_list), Catalog(settings.storage)),
            pages=page.paginator.get_elided_page_range(page.number),
            **context,
        )

    def _live(self) -> list[Run]:
        live = Run.objects.using(runs.alias()).exclude(state__in=FINAL_STATES)
        return list(live[:10])

    def _chosen(self, request: HttpRequest) -> HttpResponse:
        action, names = request.POST.get("action", ""), request.POST.getlist("_selected_action")
        if not any(may(request, each) for each in ACTIONS):
            raise PermissionDenied
        if action not in ACTIONS:
            messages.warning(request, "Choose an action first.")
        elif not names:
            messages.warning(request, "Choose the snapshots that it shall be done with first.")
        elif action == "restore" and len(names) > 1:
            messages.warning(request, "Choose one snapshot to restore.")
        else:
            require(request, action)
            return HttpResponseRedirect(self._url(action, names))
        return HttpResponseRedirect(request.get_full_path())

    def snapshot_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """One snapshot's page: what its manifest says."""
        require_view(request)
        context: dict[str, Any] = {"title": name, "name": name, "in_list": True}
        entry = self._entry(name)
        if isinstance(entry.error, SnapshotNotFoundError):
            return self._gone(request, name)
        if entry.snapshot is None:
            return self._page(request, "change_form.html", manifest_error=str(entry.error), **context)
        snapshot = entry.snapshot
        return self._page(
            request,
            "change_form.html",
            snapshot=snapshot,
            run=contents.run_of(snapshot),
            row=contents.rows([entry], Catalog(get_settings().storage))[0],
            facts=contents.facts(snapshot),
            artifacts=[contents.artifact(record) for record in snapshot.artifacts],
            packages=snapshot.pip,
            metadata=shown_json(dict(snapshot.metadata)) if snapshot.metadata else "",
            manifest=shown_json(snapshot.to_json()),
            allow_restore=get_settings().allow_restore,
            query=urlencode({"name": name}),
            **context,
        )

    def _entry(self, name: str) -> Entry:
        try:
            return Entry(name=name, snapshot=Catalog(get_settings().storage).get(name))
        except SnapshotError as error:
            return Entry(name=name, error=error)
        except Exception as error:  # noqa: BLE001 - a storage may be anybody's
            return Entry(name=name, error=execution.explained(error, f"snapshot {name}"))

    # Doing

    def take_view(self, request: HttpRequest) -> HttpResponse:
        """Take a snapshot now."""
        require(request, "take")
        context = {"title": "Take a snapshot", "button": "Take the snapshot"}
        try:
            form = TakeForm(_posted(request), settings=get_settings())
            if _is_sent(request, form):
                return self._to_run(submit(request, Kind.SNAPSHOT, form.request()))
        except SnapshotError as error:
            return self._page(request, "action.html", problem=str(error), **context)
        return self._page(request, "action.html", form=form, **context)

    def verify_view(self, request: HttpRequest) -> HttpResponse:
        """Verify one snapshot or several."""
        require(request, "verify")
        names = _names(request)
        form = VerifyForm(_posted(request), initial={"level": 2})
        if missing := self._missing(request, names):
            return missing
        if _is_sent(request, form):
            level = form.cleaned_data["level"]
            wanted = [Request.from_json({"name": name, "level": level}) for name in names]
            return self._to_runs([submit(request, Kind.VERIFY, each) for each in wanted])
        return self._page(
            request, "action.html", title=f"Verify {_listed(names)}", names=names, form=form, button="Verify"
        )

    def pin_view(self, request: HttpRequest) -> HttpResponse:
        """Pin one snapshot or several."""
        require(request, "pin")
        names, form, by = _names(request), PinForm(_posted(request)), request.user.get_username()
        if missing := self._missing(request, names):
            return missing
        if _is_sent(request, form):
            reason = form.cleaned_data["reason"]
            return self._each(
                request, names, lambda name: execution.pin_snapshot(name, reason=reason, by=by), "is pinned"
            )
        return self._page(request, "action.html", title=f"Pin {_listed(names)}", names=names, form=form, button="Pin")

    def unpin_view(self, request: HttpRequest) -> HttpResponse:
        """Take the pins of one snapshot or several away."""
        require(request, "unpin")
        names, form = _names(request), Form(_posted(request))
        if missing := self._missing(request, names):
            return missing
        if _is_sent(request, form):
            return self._each(request, names, execution.unpin_snapshot, "is not pinned any more")
        title = f"Unpin {_listed(names)}"
        warning = "A prune deletes what is not pinned as soon as the retention policy no longer keeps it."
        return self._page(request, "action.html", title=title, names=names, form=form, button="Unpin", warning=warning)

    def _each(self, request: HttpRequest, names: Sequence[str], do: Callable[[str], object], done: str) -> HttpResponse:
        """Do at once what no worker is needed for, and tell of each."""
        for name in names:
            try:
                do(name)
            except Exception as error:  # noqa: BLE001 - a storage may be anybody's
                messages.error(request, f"{name}: {execution.explained(error, f'snapshot {name}')}")
            else:
                messages.success(request, f"{name} {done}.")
        return HttpResponseRedirect(self._url("changelist"))

    def drill_view(self, request: HttpRequest) -> HttpResponse:
        """Drill one snapshot or several."""
        require(request, "drill")
        names = _names(request)
        form = Form(_posted(request))
        if missing := self._missing(request, names):
            return missing
        if _is_sent(request, form):
            wanted = [Request.from_json({"name": name}) for name in names]
            return self._to_runs([submit(request, Kind.DRILL, each) for each in wanted])
        warning = (
            "Each database is restored into a scratch database, checked and thrown away. No target is touched; it "
            "takes the time and the room of a restore."
        )
        return self._page(
            request,
            "action.html",
            title=f"Drill {_listed(names)}",
            names=names,
            form=form,
            button="Drill",
            warning=warning,
        )

    def delete_snapshots_view(self, request: HttpRequest) -> HttpResponse:
        """Delete one snapshot or several, each named once more."""
        require(request, "delete")
        names = _names(request)
        form = DeleteForm(_posted(request), names=names)
        if missing := self._missing(request, names):
            return missing
        if _is_sent(request, form):
            wanted = [Request.from_json({"name": name}) for name in names]
            return self._to_runs([submit(request, Kind.DELETE, each) for each in wanted])
        warning = "What is deleted is gone for good: the manifest first, then every file that it names."
        return self._page(
            request,
            "action.html",
            title=f"Delete {_listed(names)}",
            names=names,
            form=form,
            button="Delete",
            dangerous=True,
            warning=warning,
        )

    def restore_view(self, request: HttpRequest) -> HttpResponse:
        """Restore one snapshot, with the name of everything that is replaced typed."""
        require(request, "restore")
        (name, *more) = _names(request)
        if more:
            raise BadRequest("One snapshot is restored at a time.")
        entry = self._entry(name)
        if isinstance(entry.error, SnapshotNotFoundError):
            return self._gone(request, name)
        context: dict[str, Any] = {"title": f"Restore {name}", "names": [name], "name": name}
        if entry.snapshot is None:
            return self._page(request, "restore.html", problem=str(entry.error), **context)
        settings, snapshot = get_settings(), entry.snapshot
        form = RestoreForm(_posted(request), settings=settings, snapshot=snapshot, places=_places(settings, snapshot))
        if _is_sent(request, form):
            return self._to_run(submit(request, Kind.RESTORE, form.request()))
        return self._page(
            request,
            "restore.html",
            form=form,
            snapshot=snapshot,
            taken=shown_time(snapshot.created_at),
            here=settings,
            allow_restore=settings.allow_restore,
            **context,
        )

    # Ways

    def _missing(self, request: HttpRequest, names: Sequence[str]) -> HttpResponse | None:
        for name in names:
            if isinstance(self._entry(name).error, SnapshotNotFoundError):
                return self._gone(request, name)
        return None

    def _gone(self, request: HttpRequest, name: str) -> HttpResponse:
        messages.warning(request, f"There is no snapshot {name!r} in the storage, or no longer.")
        return HttpResponseRedirect(self._url("changelist"))

    def _to_run(self, run: Run) -> HttpResponse:
        url = reverse("admin:django_snapshots_run_change", args=(run.pk,), current_app=self.admin_site.name)
        return HttpResponseRedirect(url)

    def _to_runs(self, begun: Sequence[Run]) -> HttpResponse:
        if len(begun) == 1:
            return self._to_run(begun[0])
        return HttpResponseRedirect(reverse("admin:django_snapshots_run_changelist", current_app=self.admin_site.name))

    def _url(self, page: str, names: Sequence[str] = ()) -> str:
        url = reverse(f"admin:django_snapshots_storedsnapshot_{page}", current_app=self.admin_site.name)
        return f"{url}?{urlencode([('name', name) for name in names])}" if names else url

    def _page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        request.current_app = self.admin_site.name
        everything = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "may": {action: may(request, action) for action in ("take", *ACTIONS)},
            "actions": [action for action in ACTIONS if may(request, action)],
            **context,
        }
        return TemplateResponse(request, f"{_TEMPLATES}/{template}", everything)


def _posted(request: HttpRequest) -> Any:
    return request.POST if request.method == "POST" else None


def _is_sent(request: HttpRequest, form: Form) -> bool:
    return request.method == "POST" and form.is_valid()


def _names(request: HttpRequest) -> list[str]:
    names = list(dict.fromkeys(request.GET.getlist("name")))
    if not names or len(names) > _PER_PAGE:
        raise BadRequest("The address names the snapshots that it is about: ?name=...")
    return names


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} snapshots"


def _explained(error: Exception) -> str:
    return str(execution.explained(error, "storage"))


def _places(settings: Settings, snapshot: Snapshot) -> list[Place]:
    return [_place(settings, record) for record in snapshot.artifacts]


def _place(settings: Settings, record: ArtifactRecord) -> Place:
    """What a restore of *record* would replace; whatever a connector raises stands in the way of this one alone."""
    try:
        with _savepoint(record):
            return Place(record=record, target=restoring.target_of(settings, record.type, record.subject))
    except Exception as error:  # noqa: BLE001
        return Place(record=record, target=None, problem=str(execution.explained(error, record.subject)))


def _savepoint(record: ArtifactRecord) -> contextlib.AbstractContextManager[object]:
    """If looking fails inside of the request's transaction, the transaction must not fail with it."""
    alias = record.subject
    if record.type == "database" and alias in connections and connections[alias].in_atomic_block:
        return transaction.atomic(using=alias)
    return contextlib.nullcontext()
