"""A database engine that django-snapshots has no connector for: SQLite under another name."""
