"""The one pass from a dump to stored bytes, and back."""
