"""Measured numbers in pages: each is made from a file in results/, so that none can be stale."""

import random
import re

import pytest
from cli import REPOSITORY

from docs.claims.__main__ import list_claims, rewrite
from docs.claims.claim import ClaimError, Sentence, Table
from docs.claims.files import origins
from docs.claims.page import PAGE, all_claims

CLAIMS = list_claims()
PAGES = list(dict.fromkeys(claim.page for claim in CLAIMS))

# What is not a sentence of the page: code, comments, and where links lead.
NOT_TEXT = re.compile(r"```.*?```|`[^`\n]+`|<!--.*?-->|\]\([^)]*\)", re.DOTALL)
# Names of networks, data, types, chips, instruction sets and settings that have digits.
NAMES = re.compile(
    r"""ResNet-\d+|CIFAR-10|\b1w1a\b|1-bit|float32|bfloat16|\bint8\b|x86|AVX2|AVX-512|C\+\+
    |H100|\bv5e\b|\bh100\b|224x224|32x32|8x8|[Tt]op-1|Study\s\d|Apache-2\.0|TPAMI\s2023
    |batch(?:es)?\s(?:of\s)?(?:1|8|16|32|64|256)\b|\b1\sthread|\b2\sthreads|on\s1\b""",
    re.VERBOSE,
)
# Other numbers that no file in results/ holds, as they stand in the page, and why they may.
OTHERS = {
    "README.md": {
        "arXiv 2102.07981": "the paper",
        "1e-12 and five training steps to 1e-9": "bounds of tests/test_golden_networks.py",
        "the larger half of the weights become 1, the others 0": "the method",
        "weights near 0": "the method",
        "those above 0": "the method",
        "weights below 0": "the method",
        "32 weights to a word": "the packed format",
        "Python 3.11 or 3.12": "versions that CI tests",
        "after 400 epochs": "published",
    },
    "docs/speed.md": {
        "1000 classes": "of the network",
        "in calls of 1 and of 32 images": "what was measured",
        "wheel 3.6.1": "a version",
        "libtpu 0.0.50.1": "a version",
        "JAX 0.10.2, commit": "a version",
    },
    "docs/studies.md": {
        "10,000 images": "the protocol",
        "for 5 epochs": "the protocol",
        "Shape is 1 for Laplacian kernels and 2 for Gaussian ones": "what the measure means",
        "their percentiles P and 100 - P": "the method",
        "Falling from 25": "the protocol",
    },
}


def masked(text, *patterns):
    """The text with spaces in place of what the patterns match."""
    for pattern in patterns:
        text = re.sub(pattern, lambda found: re.sub(r"\S", " ", found[0]), text)
    return text


def spans(page, text):
    """Where a page's claims have their numbers."""
    pieces = [piece for claim in CLAIMS if claim.page == page for piece in claim.pieces(text)]
    return [(start, end) for start, end, _ in pieces]


def headers(page):
    return [re.escape(c.header) for c in CLAIMS if c.page == page and isinstance(c, Table)]


def phrases(page):
    return [r"\s+".join(map(re.escape, phrase.split())) for phrase in OTHERS[page]]


def uncovered(page, text):
    """Numbers of a page's text that neither a claim nor the lists above have."""
    kept = list(text)
    for start, end in spans(page, text):
        kept[start:end] = " " * (end - start)
    rest = masked("".join(kept), *headers(page), *phrases(page), NOT_TEXT, NAMES)
    return [rest[max(0, m.start() - 30) : m.end() + 10] for m in re.finditer(r"\d[\d.,]*", rest)]


@pytest.mark.parametrize("page", PAGES)
def test_numbers_are_those_of_the_files(page):
    """`python -m docs.claims --write` would change nothing."""
    text = (REPOSITORY / page).read_text()
    assert rewrite(page, text, CLAIMS) == text


def test_the_page_of_all_claims_is_up_to_date():
    assert all_claims(CLAIMS) == (REPOSITORY / PAGE).read_text()


@pytest.mark.parametrize("page", OTHERS)
def test_every_number_is_a_claim_or_listed(page):
    assert uncovered(page, (REPOSITORY / page).read_text()) == []


@pytest.mark.parametrize("page", OTHERS)
def test_a_new_number_is_found(page):
    text = (REPOSITORY / page).read_text()
    (found,) = uncovered(page, f"{text}\nIt takes 7.3 ms.\n")
    assert "takes 7.3 ms" in found


@pytest.mark.parametrize("page", OTHERS)
def test_what_is_listed_is_there(page):
    text = (REPOSITORY / page).read_text()
    assert [phrase for phrase in phrases(page) if not re.search(phrase, text)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_changed_digit_is_found(page):
    """Twenty digits of each page, one at a time."""
    text = (REPOSITORY / page).read_text()
    places = [i for start, end in spans(page, text) for i in range(start, end) if text[i].isdigit()]
    rng = random.Random(0)
    for place in rng.sample(places, 20):
        digit = rng.choice([d for d in "0123456789" if d != text[place]])
        changed = text[:place] + digit + text[place + 1 :]
        assert rewrite(page, changed, CLAIMS) == text, changed[place - 30 : place + 30]


def test_files_tell_where_they_come_from():
    for claim in CLAIMS:
        for path in claim.files:
            for origin in origins(path):
                assert re.fullmatch(r"\d{4}-\d\d-\d\d", origin.date), path
                assert "" not in origin, path


def test_a_claim_that_is_missing_or_there_twice_is_named():
    claim = Sentence("Size", "README.md", [], "It has {} MB.", ["4.22"])
    assert rewrite("README.md", "It has\n9 MB.", [claim]) == "It has\n4.22 MB."
    for text in ("It had 4.22 MB.", "It has 4.22 MB. It has 1 MB."):
        with pytest.raises(ClaimError, match="expected once"):
            rewrite("README.md", text, [claim])
    table = Table("Sizes", "README.md", [], "| a | b |", [["1", ""], ["3", "4"]])
    old, new = "| 9 | 9 |\n", "| 1 | |\n| 3 | 4 |\n"
    frame = "| a | b |\n|---|---|\n{}\nThat is all.\n"
    assert rewrite("README.md", frame.format(old), [table]) == frame.format(new)
    with pytest.raises(ClaimError, match="0 times"):
        rewrite("README.md", "| b | a |\n", [table])
