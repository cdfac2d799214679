"""A shop: customers, products with pictures, orders with items, reviews."""
