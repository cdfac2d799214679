"""The demo's settings, built on the service's."""
