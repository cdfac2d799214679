"""The shop's tables. The migrations add a trigger, which counts what is sold, and a view."""

from __future__ import annotations

from django.db import models


class Customer(models.Model):
    """Somebody who buys."""

    name = models.CharField(max_length=100)
    email = models.EmailField(unique=True)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    """Something to buy; its picture is a file in ``MEDIA_ROOT``."""

    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    picture = models.FileField(upload_to="products")
    sold = models.PositiveIntegerField(default=0, help_text="Counted by a trigger.")

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """One purchase."""

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    placed_at = models.DateTimeField()

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"Order {self.pk}"


class OrderItem(models.Model):
    """One line of an order."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="items")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="items")
    quantity = models.PositiveIntegerField()

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"


class Review(models.Model):
    """What a customer says of a product."""

    product = models.ForeignKey(Product, on_delete=models.CASCADE, related_name="reviews")
    text = models.TextField()

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.text[:40]
