"""Folders in results/: each explains itself, links lead somewhere, and reports can be made."""

import json
import re

import pytest
from cli import REPOSITORY, call

from siman_jax.report import __main__ as report

RESULTS = REPOSITORY / "results"
FOLDERS = sorted(path for path in RESULTS.iterdir() if path.is_dir())
PAGES = sorted({*RESULTS.glob("*.md"), *RESULTS.glob("*/*.md")})


def links(page):
    """What a page links to or shows within the repository."""
    found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
    return [(page.parent / link).resolve() for link in found if "://" not in link]


def test_each_folder_has_a_readme_and_is_in_the_list():
    listed = links(RESULTS / "README.md")
    assert [folder.name for folder in FOLDERS if folder / "README.md" not in listed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(RESULTS)))
def test_links_lead_somewhere(page):
    assert [str(link) for link in links(page) if not link.exists()] == []


def test_each_figure_is_on_a_page():
    shown = {link for page in PAGES for link in links(page)}
    figures = {path for folder in FOLDERS for path in folder.glob("*.png")}
    assert sorted(str(path) for path in figures - shown) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "variant"),
    [
        ("methods", "half_half"),
        ("decay", "half_half_l2_100"),
        ("clip", "decaying_25"),
        ("parts", "bnn_siman"),
    ],
)
def test_the_report_is_made_from_the_logs_alone(study, variant, tmp_path):
    runs = sorted((RESULTS / study / variant).glob("seed*"))
    call(report.main, *runs, f"--out={tmp_path}")
    (group,) = json.loads((tmp_path / "report.json").read_text())["groups"]
    top1 = group["at_the_end"]["last_test_top1"]
    assert top1["n"] == 3
    assert f"{top1['mean']:.1f} ± {top1['std']:.1f}" in (RESULTS / study / "README.md").read_text()
    assert (tmp_path / "figures" / "accuracy.png").is_file()
    assert "<svg" in (tmp_path / "index.html").read_text()
