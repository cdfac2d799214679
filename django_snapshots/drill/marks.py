"""What a run calls that which it leaves on servers and disks."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Self

_TEXT = re.compile(r"(?P<run>[0-9a-f]{32})_(?P<token>[0-9]{1,5})_(?P<index>[0-9]{1,4})")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Whose something is: one artifact's in one attempt of one run."""

    run: uuid.UUID
    token: int
    index: int

    def __str__(self) -> str:
        return f"{self.run.hex}_{self.token}_{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The mark that *text* is; ``None`` if it is none of ours."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        return cls(run=uuid.UUID(match["run"]), token=int(match["token"]), index=int(match["index"]))
