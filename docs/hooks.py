"""Adds to the site what stands outside docs/: README, results, reports of studies, cards of models.

The repository's top and docs/ both become the top of the site. So `../results/README.md`, a link
in docs/speed.md that works wherever the repository is shown, becomes `results/README.md`. The file
it leads to is added to the site, and so are the files which that one links to. README.md is the
home page.
"""

import posixpath
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parent.parent
STUDIES = ("methods", "decay", "clip", "parts")
CARDS = "trained"  # also the page to which the cards are added
SOME_LEFT_OUT = 1  # exit status of a report that names runs it left out: those that diverged
# A link or image of Markdown: what stands before the path, the path, an anchor if there is one.
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")

_made = tempfile.TemporaryDirectory(prefix="siman-jax-site-")


def on_startup(command: str, dirty: bool) -> None:
    """Make the reports and the cards from logs, once for all builds of `mkdocs serve`."""
    run("benchmarks.trained_cards", f"{_made.name}/{CARDS}")
    for study in STUDIES:
        runs = sorted(path.parent for path in REPOSITORY.glob(f"results/{study}/*/*/log.jsonl"))
        run("siman_jax.report", *runs, f"--out={_made.name}/{study}")


def run(module: str, *arguments: str | Path) -> None:
    """Run a module of the repository as a command."""
    made = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode not in (0, SOME_LEFT_OUT):
        raise PluginError(f"{module} {arguments[-1]} failed:\n{made.stderr}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, the reports, figures of the cards, and all files that pages link to."""
    for study in STUDIES:
        page = f"{_made.name}/{study}/index.html"
        uri = f"results/{study}/report/index.html"
        files.append(File.generated(config, uri, abs_src_path=page))
    for figure in Path(_made.name, CARDS).glob("*.png"):
        files.append(File.generated(config, figure.name, abs_src_path=str(figure)))
    todo = ["README.md", *(_repository_path(page.src_uri) for page in files.documentation_pages())]
    while todo:
        path = todo.pop()
        if files.get_file_from_path(_site_path(path)) is None:
            source = str(REPOSITORY / path)
            files.append(File.generated(config, _site_path(path), abs_src_path=source))
        if path.endswith(".md"):
            text = (REPOSITORY / path).read_text()
            found = {linked for _, linked, _ in _links(text, path)}
            todo += sorted(p for p in found if files.get_file_from_path(_site_path(p)) is None)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    path = _repository_path(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri) or "."
    for link, linked, anchor in _links(markdown, path):
        target = posixpath.relpath(_site_path(linked), folder)
        markdown = markdown.replace(f"]({link}{anchor}", f"]({target}{anchor}")
    if page.file.src_uri == f"{CARDS}.md":
        markdown += "\n" + Path(_made.name, CARDS, "cards.md").read_text()
    return markdown


def _links(text: str, path: str) -> Iterator[tuple[str, str, str]]:
    """Links in a page of the repository: as written, the file they lead to, the anchor and `)`."""
    for _, link, end in LINK.findall(text):
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if (REPOSITORY / linked / "README.md").is_file():
            linked = posixpath.join(linked, "README.md")  # what a folder shows
        report = linked.endswith("/report/index.html")
        if report or (not linked.startswith("..") and (REPOSITORY / linked).is_file()):
            yield link, linked, end


def _site_path(path: str) -> str:
    """Where a file of the repository is in the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _repository_path(uri: str) -> str:
    """The file of the repository that is at this place in the site."""
    if uri == "index.md":
        return "README.md"
    return f"docs/{uri}" if (REPOSITORY / "docs" / uri).is_file() else uri
