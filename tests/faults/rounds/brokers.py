"""Each sort of broker, and what can befall it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django_snapshots.filesystem_broker import TRANSPORT, transport_options
from tests.services.rabbitmq import RabbitMQ
from tests.services.servers import Redis, Service

_AWAY_SECONDS = 1.5


@dataclass(kw_only=True)
class Broker:
    """A broker of this session's own."""

    url: str
    settings: dict[str, Any] = field(default_factory=dict)
    service: Service | None = None
    messages: Path | None = None

    def restart(self) -> None:
        """Away for a moment, and back; what it had in memory is gone."""
        if self.service is not None:
            self.service.stop()
            self.service.start()
            self.service.wait_until_ready()
        else:
            assert self.messages is not None
            hidden = self.messages.with_name("away")
            self.messages.rename(hidden)
            time.sleep(_AWAY_SECONDS)
            hidden.rename(self.messages)

    def flush(self, app: Any) -> None:
        """Every message that nobody has taken is lost."""
        if self.messages is not None:
            for path in self.messages.glob("*.msg"):
                path.unlink(missing_ok=True)
        else:
            with app.connection_for_write() as connection:
                connection.default_channel.queue_purge("snapshots")


def make(name: str, directory: Path) -> Broker:
    """Start a broker of the sort *name* below *directory*."""
    if name == "filesystem":
        options = transport_options(directory / "broker", polling_interval=0.2)
        return Broker(
            url="filesystem://localhost",
            settings={"BROKER_TRANSPORT": TRANSPORT, "BROKER_TRANSPORT_OPTIONS": options},
            messages=Path(str(options["data_folder_in"])),
        )
    service = {"redis": Redis, "rabbitmq": RabbitMQ}[name](directory, lives_on=False)
    bring_up(service)
    url = f"{service.server().url}/0" if name == "redis" else service.server().url
    return Broker(url=url, service=service)


def bring_up(service: Service) -> None:
    """Start a private server and wait for it."""
    service.make_directory()
    service.prepare()
    service.start()
    service.wait_until_ready()
