"""The commands and examples in the README and the manual, and how each of them is checked.

A comment above each fenced block says so:

    <!-- example -->           it is only an example, such as a configuration file
    <!-- run: sh -->           a shell runs it beside a server with the embedded model
    <!-- run: make -->         the Makefile has these targets
    <!-- run: FILE -->         that file of the tests runs it
    <!-- run: openai -->       `make clients` runs it with OpenAI's client
    <!-- run: anthropic -->    `make clients` runs it with Anthropic's
    <!-- NAME -->              a different test, which looks for that comment, checks it
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "lmlite" / "manual").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://localhost:1234"  # of the server, in all blocks


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    mark: str  # empty without a comment
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text.splitlines()[0]}"

    def at(self, url: str) -> str:
        """The block's text, for a server at a different address."""
        return self.text.replace(ADDRESS, url)


def blocks(mark: str | None = None) -> list[Block]:
    """The blocks with this mark, or all blocks, in order."""
    found = [Block(page, *match) for page in PAGES for match in BLOCK.findall(page.read_text())]
    return [block for block in found if mark is None or block.mark == mark]
