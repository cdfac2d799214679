"""Orders of former years, in a database of their own."""
