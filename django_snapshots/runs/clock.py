"""Two clocks: the database's, by which leases are given, and this machine's, by which a holder judges its own.

No worker's wall clock decides anything: those of two hosts differ, and each may be set while a run goes on.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from django.db.models import DateTimeField, Func

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_MARGIN = 6
_SQLITE = "STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW', '{seconds:+.6f} seconds')"


class DatabaseNow(Func):
    """The database's clock, in UTC, *seconds* from now; what was before now is less than 0.

    Not Django's ``Now``, which on MySQL is in the time zone of the session. And not Django's sum of a time and a
    duration: on SQLite that calls a function in Python, and whatever is raised in one (Ctrl-C, a time limit) comes out
    as an error of the database, for which a run would wait and try again.
    """

    template = "CURRENT_TIMESTAMP"
    output_field = DateTimeField()

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = float(seconds)

    def as_sql(
        self,
        compiler: Any,
        connection: Any,
        function: str | None = None,
        template: str | None = None,
        arg_joiner: str | None = None,
        **context: Any,
    ) -> Any:
        """On other databases Django adds the seconds, in their own words."""
        if self.seconds and template is None:
            total = DatabaseNow() + timedelta(seconds=self.seconds)
            return compiler.compile(total.resolve_expression(compiler.query))
        return super().as_sql(compiler, connection, function, template, arg_joiner, **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """The wall clock, also inside of a long transaction."""
        template = f"(CLOCK_TIMESTAMP() + INTERVAL '{self.seconds:.6f} seconds')"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """UTC whatever the session's time zone is."""
        template = f"(UTC_TIMESTAMP(6) + INTERVAL {self.seconds * 1_000_000:.0f} MICROSECOND)"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """The clock of this machine, which every process that uses the file has."""
        return self.as_sql(compiler, connection, template=_SQLITE.format(seconds=self.seconds), **context)


def seconds_since_boot() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """What a holder knows of its own right, without asking anybody.

    The database counts *seconds* from the moment at which it answers a renewal. The holder counts from before it has
    asked, and a sixth less; so it stops believing before anybody else may begin.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = 0.0

    def renewed(self, asked_at: float) -> None:
        """A renewal that was asked for at *asked_at*, by ``seconds_since_boot``, was granted."""
        self._until = max(self._until, asked_at + self.seconds * (1 - 1 / _MARGIN))

    def holds(self) -> bool:
        """Whether the lease can only be this holder's."""
        return seconds_since_boot() < self._until
