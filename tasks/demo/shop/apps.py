"""The shop's place in the project."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The shop."""

    name = "tasks.demo.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"
