"""The archive's one table."""

from __future__ import annotations

from django.db import models


class ArchivedOrder(models.Model):
    """An order as it once was."""

    customer = models.CharField(max_length=100)
    total = models.DecimalField(max_digits=10, decimal_places=2)
    placed_at = models.DateTimeField()

    class Meta:
        app_label = "archive"

    def __str__(self) -> str:
        return f"{self.customer}, {self.placed_at:%Y-%m-%d}"
