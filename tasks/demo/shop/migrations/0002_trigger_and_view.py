"""What Django has no models for: a trigger that counts what is sold, and a view of each product's revenue."""

from django.db import migrations

_TRIGGER = """
CREATE TRIGGER shop_count_sold AFTER INSERT ON shop_orderitem BEGIN
    UPDATE shop_product SET sold = sold + NEW.quantity WHERE id = NEW.product_id;
END
"""
_VIEW = """
CREATE VIEW shop_revenue AS
    SELECT product.id, product.name, sum(item.quantity * product.price) AS revenue
    FROM shop_product AS product JOIN shop_orderitem AS item ON item.product_id = product.id
    GROUP BY product.id, product.name
"""


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    operations = [
        migrations.RunSQL(_TRIGGER, "DROP TRIGGER shop_count_sold"),
        migrations.RunSQL(_VIEW, "DROP VIEW shop_revenue"),
    ]
