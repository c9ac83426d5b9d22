"""A measured claim: where a page says it, and what it has to say there."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Formatter


class ClaimError(Exception):
    """A page does not hold a claim, or holds it more than once."""


@dataclass(frozen=True)
class Claim:
    """What tables and sentences have in common.

    Attributes:
      title: heads it on the page of all claims.
      page: the file that says it, from the repository's top.
      files: those in results/ that its numbers come from.
    """

    title: str
    page: str
    files: Sequence[str]

    def text(self) -> str:
        """Return the claim in Markdown, with its numbers."""
        raise NotImplementedError

    def pieces(self, page: str) -> Iterator[tuple[int, int, str]]:
        """Find what is written from the files: where it begins and ends in a page, and its text.

        Raises:
          ClaimError: if the claim does not stand there exactly once.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Table(Claim):
    """A table, known by its first line; the lines after the second are written whole."""

    header: str
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the whole table."""
        return f"{self.header}\n|{'---|' * (self.header.count('|') - 1)}\n{self._body()}"

    def _body(self) -> str:
        return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in self.rows)

    def pieces(self, page: str) -> Iterator[tuple[int, int, str]]:
        """Find the lines after the first two."""
        pattern = re.compile(rf"^{re.escape(self.header)}\n\|[-|]+\n((?:\|.*\n)*)", re.MULTILINE)
        (found,) = _once(self, pattern, page)
        yield *found.span(1), self._body()


@dataclass(frozen=True)
class Sentence(Claim):
    """A sentence, or a part of one, with {} where a number stands; lines may break anywhere."""

    words: str
    numbers: Sequence[str]

    def text(self) -> str:
        """Return the sentence with its numbers."""
        return self.words.format(*self.numbers)

    def pieces(self, page: str) -> Iterator[tuple[int, int, str]]:
        """Find the numbers."""
        parts = [
            "".join(r"\s+" if c.isspace() else re.escape(c) for c in literal)
            + ("" if field is None else r"([\w.,]*\w)")
            for literal, field, _, _ in Formatter().parse(self.words)
        ]
        (found,) = _once(self, re.compile("".join(parts)), page)
        for place, text in enumerate(self.numbers, start=1):
            yield *found.span(place), text


def _once(claim: Claim, pattern: re.Pattern[str], page: str) -> list[re.Match[str]]:
    found = list(pattern.finditer(page))
    if len(found) != 1:
        wanted = claim.header if isinstance(claim, Table) else claim.words
        raise ClaimError(
            f"{claim.page} has this claim {len(found)} times, expected once:\n{wanted}\n"
            "Write it so on the page, or change it in docs/claims/."
        )
    return found
