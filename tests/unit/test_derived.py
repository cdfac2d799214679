"""Aliases that a restore into another database makes: they are nobody's but the restore's."""

from __future__ import annotations

import pytest
from django.db import connections

from django_snapshots.conf import get_settings
from django_snapshots.connectors.derived import base_of, beside, ensure, known, of_settings
from django_snapshots.exceptions import SnapshotConfigurationError


def test_one_is_in_no_snapshot_and_no_request_opens_a_transaction_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = get_settings().aliases()
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    made = beside("default", "shop_copy")
    assert (made, base_of(made), known()) == ("default@shop_copy", "default", ["default@shop_copy"])
    assert get_settings().aliases() == before == tuple(of_settings())
    assert connections.settings[made]["ATOMIC_REQUESTS"] is False
    assert connections.settings[made]["NAME"] == "shop_copy"


def test_an_alias_of_the_settings_may_look_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings, "shop@north", connections.settings["default"])
    assert ensure("shop@north") == base_of("shop@north") == "shop@north"
    assert "shop@north" in get_settings().aliases()
    assert "shop@north" not in known()


@pytest.mark.parametrize(
    "name", ["mysql", "MySQL", "information_schema", "template1", "django_snapshots_old_x", "", "a\0"]
)
def test_some_names_are_never_a_target(name: str) -> None:
    with pytest.raises(SnapshotConfigurationError):
        beside("default", name)
