"""A schema with everything that Django's models can hold; it migrates on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower


class EveryColumn(models.Model):
    """One column of every type."""

    big_integer = models.BigIntegerField(default=0)
    binary = models.BinaryField(default=b"", null=True)
    boolean = models.BooleanField(default=False, null=True)
    char = models.CharField(max_length=200, default="", blank=True)
    date = models.DateField(null=True)
    date_time = models.DateTimeField(null=True)
    decimal = models.DecimalField(max_digits=30, decimal_places=10, null=True)
    duration = models.DurationField(null=True)
    email = models.EmailField(default="", blank=True)
    file = models.FileField(upload_to="files", default="", blank=True)
    file_path = models.FilePathField(default="", blank=True)
    float = models.FloatField(null=True)
    generic_ip = models.GenericIPAddressField(null=True)
    image = models.ImageField(upload_to="images", default="", blank=True)
    integer = models.IntegerField(default=0)
    json = models.JSONField(default=dict)
    nullable_json = models.JSONField(null=True)
    positive_big = models.PositiveBigIntegerField(default=0)
    positive = models.PositiveIntegerField(default=0)
    positive_small = models.PositiveSmallIntegerField(default=0)
    slug = models.SlugField(default="", blank=True)
    small_integer = models.SmallIntegerField(default=0)
    text = models.TextField(default="", blank=True)
    time = models.TimeField(null=True)
    url = models.URLField(default="", blank=True)
    uuid = models.UUIDField(null=True)
    doubled = models.GeneratedField(expression=F("integer") * 2, output_field=models.BigIntegerField(), db_persist=True)
    created = models.DateTimeField(auto_now_add=True)
    changed = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(small_integer__gte=-32000), name="small_is_not_smallest")]


class SmallKey(models.Model):
    id = models.SmallAutoField(primary_key=True)


class IntegerKey(models.Model):
    id = models.AutoField(primary_key=True)


class UuidKey(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    parent = models.ForeignKey("self", models.CASCADE, null=True)


class CompositeKey(models.Model):
    pk = models.CompositePrimaryKey("tenant", "number")
    tenant = models.IntegerField()
    number = models.IntegerField()
    note = models.CharField(max_length=50, default="")


class NonAscii(models.Model):
    """A table and a column that need quoting."""

    value = models.CharField(max_length=100, db_column="значение – value")

    class Meta:
        db_table = "таблица order"


class CountryManager(models.Manager["Country"]):
    def get_by_natural_key(self, code: str) -> Country:
        return self.get(code=code)


class Country(models.Model):
    """Has a natural key, and others refer to it by a column that isn't its primary key."""

    code = models.CharField(max_length=3, unique=True)
    name = models.CharField(max_length=100)

    objects = CountryManager()

    class Meta:
        indexes = [models.Index(fields=["-name", "code"]), models.Index(Lower("code"), name="country_lower_code")]

    def natural_key(self) -> tuple[str]:
        return (self.code,)


class CountryByName(Country):
    class Meta:
        proxy = True
        ordering = ["name"]


class Chicken(models.Model):
    """One half of a cycle of foreign keys."""

    name = models.CharField(max_length=100)
    hatched_from = models.ForeignKey("Egg", models.CASCADE, null=True, related_name="+")


class Egg(models.Model):
    laid_by = models.ForeignKey(Chicken, models.CASCADE, related_name="eggs")


class Place(models.Model):
    name = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.PROTECT, to_field="code", null=True)


class Restaurant(Place):
    """Inherits a table of its own from another."""

    stars = models.IntegerField(default=0)
    near = models.ManyToManyField(Place, related_name="near_restaurants")


class Tag(models.Model):
    name = models.CharField(max_length=100, unique=True)
    friends = models.ManyToManyField("self")


class Author(models.Model):
    name = models.CharField(max_length=100)
    tags = models.ManyToManyField(Tag)


class Book(models.Model):
    title = models.CharField(max_length=200)
    authors = models.ManyToManyField(Author, through="Authorship")


class Authorship(models.Model):
    author = models.ForeignKey(Author, models.CASCADE)
    book = models.ForeignKey(Book, models.CASCADE)
    share = models.DecimalField(max_digits=5, decimal_places=2)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["author", "book"], name="one_share_each")]


class Cover(models.Model):
    """Its primary key is a foreign key."""

    book = models.OneToOneField(Book, models.CASCADE, primary_key=True)
    colour = models.CharField(max_length=20)


class Note(models.Model):
    """Refers to anything, by content type."""

    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.PositiveBigIntegerField()
    subject = GenericForeignKey()


class VisibleManager(models.Manager["Hidden"]):
    def get_queryset(self) -> Any:
        return super().get_queryset().filter(visible=True)


class Hidden(models.Model):
    """Its default manager doesn't show every row."""

    visible = models.BooleanField(default=False)

    objects = VisibleManager()


class Unmanaged(models.Model):
    """Its table isn't Django's to make."""

    class Meta:
        managed = False
        db_table = "project_unmanaged"
