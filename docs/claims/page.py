"""Makes docs/measured.md: every claim, with the files, commits, machines and commands behind it."""

import posixpath
import re
from collections.abc import Iterator, Sequence

from .claim import Claim, Table
from .files import origins

PAGE = "docs/measured.md"
_HEAD = """# What was measured

Every measured number of the README, of Speed and of Studies, as it reads there, with the files it
is made from. `python -m docs.claims --write` writes this page and those numbers, and a test
compares them with the files, so none is out of date. A day is that on which a file was kept; "not
kept" stands for what a file does not say.
"""
# How pages are named on the site.
_NAMES = {"README.md": "Home", "docs/speed.md": "Speed", "docs/studies.md": "Studies"}


def all_claims(claims: Sequence[Claim]) -> str:
    """Return the page in Markdown; claims of one title stand together."""
    parts = [_HEAD]
    for page in dict.fromkeys(claim.page for claim in claims):
        parts.append(f"\n## {_NAMES[page]}\n\nThe page [{_NAMES[page]}]({_link(page)}) says:\n")
        here = [claim for claim in claims if claim.page == page]
        for title in dict.fromkeys(claim.title for claim in here):
            parts += _together(title, [claim for claim in here if claim.title == title])
    parts.append("\n## Commands\n\nBy which the files were made.\n")
    for path in dict.fromkeys(path for claim in claims for path in claim.files):
        parts += [f"\n### {path}\n\n", *_commands(path)]
    return "".join(parts)


def _together(title: str, claims: Sequence[Claim]) -> Iterator[str]:
    yield f"\n### {title}\n"
    for claim in claims:
        yield f"\n{claim.text() if isinstance(claim, Table) else _quoted(claim.text())}"
    yield "\n"
    for path in dict.fromkeys(path for claim in claims for path in claim.files):
        for origin in dict.fromkeys(origin._replace(command="") for origin in origins(path)):
            yield (
                f"- [{path}]({_link(f'results/{path}')}), {origin.date}, commit {origin.commit}:"
                f" {origin.machine} ([command](#{_anchor(path)}))\n"
            )


def _quoted(text: str) -> str:
    """Show words of a page; dots stand for what is before and after them in the sentence."""
    before = "" if text[0].isupper() else "... "
    return f"> {before}{text}{'' if text.endswith('.') else ' ...'}\n"


def _commands(path: str) -> Iterator[str]:
    for command in dict.fromkeys(origin.command for origin in origins(path)):
        yield f"- `{command}`\n" if command != "not kept" else "- not kept\n"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]", "", heading.lower())


def _link(path: str) -> str:
    return posixpath.relpath(path, posixpath.dirname(PAGE))
