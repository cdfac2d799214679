"""The pages of the documentation and the blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.projects import ROOT

PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
BY_HAND = "docs/how-to/restore-by-hand.md"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: str
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page} {self.heading!r} ({self.language})"


def blocks(*languages: str, page: str | None = None) -> Iterator[Block]:
    for path in PAGES:
        name = str(path.relative_to(ROOT))
        heading, lines, language = "", list[str](), None
        for line in path.read_text().splitlines():
            if line.startswith("```"):
                if language is not None and language in languages and page in (None, name):
                    yield Block(page=name, heading=heading, language=language, text="\n".join(lines))
                language, lines = (line.removeprefix("```") if language is None else None), []
            elif language is not None:
                lines.append(line)
            elif line.startswith("#"):
                heading = line.lstrip("# ")


def the_block(page: str, heading: str, language: str, position: int = 0) -> str:
    return [block.text for block in blocks(language, page=page) if block.heading == heading][position]


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def told_fields(page_part: str) -> set[str]:
    rows = re.findall(r"^\| (`.*?) \|", page_part, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def part(beginning: str, end: str) -> str:
    page = text_of("docs/reference/format.md")
    return page[page.index(beginning) : page.index(end)]
