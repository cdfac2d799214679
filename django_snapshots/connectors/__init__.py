"""Connectors: how one alias is dumped and restored."""
