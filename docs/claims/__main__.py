"""Compares the pages with the files in results/, or writes them from these."""

import argparse
import sys
from collections.abc import Sequence

from . import __doc__ as about
from . import accelerators, accuracy, packed, training
from .claim import Claim, ClaimError
from .files import REPOSITORY
from .page import PAGE, all_claims


def list_claims() -> list[Claim]:
    """List the claims of all pages."""
    return [claim for room in (accuracy, packed, training, accelerators) for claim in room.claims()]


def rewrite(page: str, text: str, claims: Sequence[Claim]) -> str:
    """Return a page's text with all its numbers as the files have them.

    Args:
      page: its path from the repository's top.
      text: of the page as it is.
      claims: of all pages.

    Raises:
      ClaimError: if a claim does not stand on the page exactly once.
    """
    pieces = [piece for claim in claims if claim.page == page for piece in claim.pieces(text)]
    for start, end, new in sorted(pieces, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def main() -> int:
    """Compare or write; return 1 if pages differ, or lack a claim."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the pages")
    flags = parser.parse_args()
    claims, differ = list_claims(), False
    for page in (*dict.fromkeys(claim.page for claim in claims), PAGE):
        path = REPOSITORY / page
        old = path.read_text() if path.exists() else ""
        try:
            new = all_claims(claims) if page == PAGE else rewrite(page, old, claims)
        except ClaimError as error:
            print(error, file=sys.stderr)
            differ = True
            continue
        if new != old and flags.write:
            path.write_text(new)
            print(f"{page} is written")
        elif new != old:
            print(f"{page} differs from the files in results/; add --write to write it")
            differ = True
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
