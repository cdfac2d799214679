"""The shop in the admin."""

from __future__ import annotations

from django.contrib import admin

from tasks.demo.shop.models import Customer, Order, OrderItem, Product, Review

admin.site.register([Customer, Order, OrderItem, Product, Review])
