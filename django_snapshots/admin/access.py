"""Who may do what in the admin, and how what they ask for reaches the workers."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from django_snapshots import messages as sending
from django_snapshots import runs
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import Kind, Run
from django_snapshots.plan import Request

ACTIONS = ("verify", "drill", "restore", "pin", "unpin", "delete")
"""What can be done with a snapshot that is there; ``take`` makes a new one."""
_BY_RIGHT_OF = {"drill": "verify", "pin": "delete", "unpin": "delete"}
"""A drill reads the snapshot and touches no target. Whoever may say what goes may say what stays."""


class ReadOnly:
    """Nobody adds, changes or deletes a row by hand; whoever may see the journal may see it."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: a snapshot is deleted by a task, a row of the journal not at all."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether this user may look."""
        return may_view(request)


def may_view(request: HttpRequest) -> bool:
    """Whether this user may see snapshots and runs."""
    return request.user.has_perm("django_snapshots.view_run")


def may(request: HttpRequest, action: str) -> bool:
    """Whether this user may *action*, one of ``ACTIONS`` or ``take``. Nobody may who can't look."""
    right = _BY_RIGHT_OF.get(action, action)
    return may_view(request) and request.user.has_perm(f"django_snapshots.{right}_snapshot")


def may_cancel(request: HttpRequest) -> bool:
    """Whether this user may cancel runs. Nobody may who can't look."""
    return may_view(request) and request.user.has_perm("django_snapshots.cancel_run")


def require_view(request: HttpRequest) -> None:
    """Raise ``PermissionDenied`` for a user who may not look."""
    if not may_view(request):
        raise PermissionDenied


def require(request: HttpRequest, action: str) -> None:
    """Raise ``PermissionDenied`` for a user who may not *action*."""
    if not may(request, action):
        raise PermissionDenied


def submit(request: HttpRequest, kind: Kind, wanted: Request) -> Run:
    """Record in the journal that this user asked for *wanted*; the task is sent when the transaction is committed.

    The user is told then, with the error if the broker did not take it.
    """
    requester = runs.Requester(name=request.user.get_username(), key=str(request.user.pk), source="admin")
    what = f"{kind.label} {wanted.name}" if wanted.name else str(kind.label)

    def told(error: SnapshotError | None) -> None:
        if error is None:
            messages.success(request, f"{what}: the workers have been asked.", fail_silently=True)
        else:
            messages.error(request, f"{what}: {error}", fail_silently=True)

    return sending.send_on_commit(kind, wanted, requester, told=told)
