"""The journal: who asked, for what, when, how far it is, what came of it.

The journal may lie in a database that is itself restored. So its tables have no foreign key to anybody else's, are
left out of dumps, and are never dropped by a restore.
"""

from __future__ import annotations

import uuid

from django.db import models


class State(models.TextChoices):
    """``queued -> running -> succeeded | failed | cancelled``; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Kind(models.TextChoices):
    """What a run does."""

    SNAPSHOT = "snapshot"
    RESTORE = "restore"
    UNDO = "undo"
    VERIFY = "verify"
    DELETE = "delete"
    PRUNE = "prune"
    DRILL = "drill"


class Run(models.Model):
    """One operation, from request to final state."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    state = models.CharField(max_length=16, choices=State.choices, default=State.QUEUED, db_index=True)
    inline = models.BooleanField(default=False, help_text="One process does it all; no message asks a worker.")
    name = models.CharField("snapshot", max_length=150, blank=True)
    request = models.JSONField(default=dict, help_text="What was asked for: the task's arguments.")
    requested_by = models.CharField(max_length=255, blank=True, help_text="Who asked, as text.")
    requested_by_key = models.CharField(max_length=255, blank=True, help_text="Their primary key, as text.")
    requested_from = models.CharField(max_length=32, blank=True, help_text="task, command, admin, schedule or code")
    slot = models.CharField(  # noqa: DJ001 - NULL is what leaves a unique column free
        max_length=150, null=True, unique=True, help_text="(schedule, time) that this run is for."
    )
    task_id = models.CharField(max_length=255, blank=True, help_text="The Celery task that waits for the result.")
    storage_id = models.CharField(max_length=64, blank=True)
    storage_label = models.CharField(max_length=255, blank=True, db_index=True)
    reservation = models.CharField(  # noqa: DJ001 - NULL is what leaves a unique column free
        max_length=255, null=True, unique=True, help_text="(storage, name) while this run may publish it."
    )
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    result = models.JSONField(null=True)
    error = models.TextField(blank=True)
    error_type = models.CharField(max_length=100, blank=True)
    cancel_requested_at = models.DateTimeField(null=True)
    cancel_requested_by = models.CharField(max_length=255, blank=True)
    token = models.PositiveIntegerField(default=0, help_text="The fencing number of the finish.")
    holder = models.CharField(max_length=255, blank=True)
    lease_until = models.DateTimeField(null=True, help_text="The finish's, by the database's clock.")
    publishing_at = models.DateTimeField(null=True, help_text="From here on it goes forward.")
    retreating_at = models.DateTimeField(null=True, help_text="From here on it is taken back.")
    touched_at = models.DateTimeField(null=True, help_text="Its last move, by the database's clock.")
    not_before = models.DateTimeField(null=True, help_text="It waits until then, by the database's clock.")
    expires_at = models.DateTimeField(null=True, help_text="If nobody has begun it by then, nobody shall.")
    hinted_at = models.DateTimeField(null=True, help_text="When its last message was sent.")
    hints = models.PositiveIntegerField(default=0)
    told_at = models.DateTimeField(null=True, help_text="When its result was given to whoever waits for it.")

    class Meta:
        ordering = ("-created_at",)
        get_latest_by = "created_at"
        default_permissions = ("view",)
        permissions = (
            ("take_snapshot", "Can take a snapshot"),
            ("restore_snapshot", "Can restore a snapshot"),
            ("verify_snapshot", "Can verify a snapshot"),
            ("delete_snapshot", "Can delete a snapshot"),
            ("cancel_run", "Can cancel a run"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.name or self.pk} ({self.state})"


class StoredSnapshot(Run):
    """The snapshots' place in the admin. They lie in storage: this has no table and no rows of its own.

    A proxy, because ``dumpdata`` and whoever else goes through all models would look for an unmanaged model's table.
    """

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = "snapshot"

    def __str__(self) -> str:
        return self.name


class Step(models.Model):
    """One artifact's share of a run; what one worker works on."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="steps")
    position = models.PositiveIntegerField()
    phase = models.PositiveIntegerField(default=0, help_text="A phase starts when all moments of the last are fixed.")
    type = models.CharField(max_length=64)
    subject = models.CharField(max_length=255, blank=True)
    state = models.CharField(max_length=16, choices=State.choices, default=State.QUEUED)
    token = models.PositiveIntegerField(default=0, help_text="The fencing number of the latest attempt.")
    attempts = models.PositiveIntegerField(default=0)
    holder = models.CharField(max_length=255, blank=True, help_text="host, process id and attempt")
    lease_until = models.DateTimeField(null=True, help_text="By the database's clock.")
    not_before = models.DateTimeField(null=True, help_text="The next attempt waits until then.")
    hinted_at = models.DateTimeField(null=True, help_text="When its last message was sent.")
    hints = models.PositiveIntegerField(default=0)
    heartbeat_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    moment = models.DateTimeField(null=True, help_text="The moment that the content shows.")
    first_byte_at = models.DateTimeField(null=True)
    last_byte_at = models.DateTimeField(null=True)
    content_bytes = models.BigIntegerField(default=0, help_text="Bytes of plain content so far.")
    filename = models.CharField(max_length=255, blank=True, help_text="The attempt's object beside the manifest.")
    record = models.JSONField(null=True, help_text="The artifact's record, once it is stored; or a report.")
    error = models.TextField(blank=True)
    error_type = models.CharField(max_length=100, blank=True)

    class Meta:
        ordering = ("run", "position")
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("run", "position"), name="django_snapshots_step_position"),)

    def __str__(self) -> str:
        return f"{self.type} {self.subject}".strip()


class Lock(models.Model):
    """What a live run works with, by what it physically is; gone with the run's end."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="locks")
    key = models.CharField(max_length=255, db_index=True)
    exclusive = models.BooleanField()
    what = models.CharField(max_length=255, help_text="In words.")

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("run", "key"), name="django_snapshots_lock_of_run"),)

    def __str__(self) -> str:
        return self.what


class Housekeeping(models.Model):
    """One row: when the journal was last swept. Whoever takes locks changes it first, so that one does at a time."""

    swept_at = models.DateTimeField(null=True, help_text="By the database's clock.")
    collected_at = models.DateTimeField(null=True, help_text="When the storage was last looked through for garbage.")
    turn = models.PositiveBigIntegerField(default=0)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"swept at {self.swept_at}"
