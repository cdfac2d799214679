"""The pages of the documentation and the blocks in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    position: int
    """Which one it is of its page, heading and language, from 0."""
    before: str
    """The last line of text before it."""

    def __str__(self) -> str:
        return f"{self.page} {self.heading!r} ({self.language})"

    @property
    def name(self) -> str:
        """``page 'heading' (language)``, with a number from the second of its kind on."""
        return f"{self} {self.position + 1}" if self.position else str(self)


def blocks(*languages: str, page: str | None = None) -> Iterator[Block]:
    """Every fenced block in one of *languages*, or in any, in order; directives of Sphinx are no blocks."""
    for path in PAGES:
        name = str(path.relative_to(ROOT))
        if page in (None, name):
            yield from (block for block in _of_page(name, path) if not languages or block.language in languages)


def _of_page(name: str, path: Path) -> Iterator[Block]:
    heading, before, lines, language, seen = "", "", list[str](), None, Counter[tuple[str, str]]()
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            if language is not None and not language.startswith("{"):
                position = seen[heading, language]
                seen[heading, language] += 1
                text = "\n".join(lines)
                yield Block(page=name, heading=heading, language=language, text=text, position=position, before=before)
            language, lines = (line.removeprefix("```") if language is None else None), []
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        elif line:
            before = line


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
