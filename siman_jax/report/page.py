"""Renders sections of text, figures and tables as one self-contained HTML page."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from siman_jax.report.style import STYLE
from siman_jax.report.svg import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """A figure with its title and caption.

    Attributes:
      name: unique name of its file, without the extension.
      figure: from `figures`.
      title: a short title.
      caption: the explanation.
    """

    name: str
    figure: "Figure"
    title: str
    caption: str


class Table(NamedTuple):
    """A table of text.

    Attributes:
      title: a short title.
      caption: the explanation.
      headings: of the columns.
      rows: cells, with numbers already formatted.
      means: indices of rows that hold means of other rows.
    """

    title: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    means: Sequence[int] = ()


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      title: its heading.
      text: the introduction.
      tables: tables before the pictures.
      pictures: the figures.
      details: tables after the pictures.
      collapsed: whether it is closed until clicked; None if it is always open.
    """

    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    details: Sequence[Table] = ()
    collapsed: bool | None = None


def render_page(
    title: str, text: str, problems: Sequence[tuple[str, str]], sections: Sequence[Section]
) -> str:
    """Render the page as HTML.

    Args:
      title: of the page.
      text: the introduction.
      problems: labels of runs, each with what was left out and why.
      sections: the rest of the page.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{escape(title)}</h1><p class=soft>{escape(text)}</p></header>",
            *([_render_problems(problems)] if problems else []),
            "<main>",
            *map(_render_section, sections),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _render_problems(problems: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{escape(run)}</b>: {escape(text)}</li>" for run, text in problems)
    return f'<section class="problems"><h2>Left out</h2><ul>{items}</ul></section>'


def _render_section(section: Section) -> str:
    parts = [
        f"<p>{escape(section.text)}</p>" if section.text else "",
        *map(_render_table, section.tables),
        '<div class="figures">' if section.pictures else "",
        *map(_render_picture, section.pictures),
        "</div>" if section.pictures else "",
        *map(_render_table, section.details),
    ]
    body = "\n".join(part for part in parts if part)
    if section.collapsed is None:
        return f"<section><h2>{escape(section.title)}</h2>\n{body}\n</section>"
    state = "" if section.collapsed else " open"
    return f"<details{state}><summary>{escape(section.title)}</summary>\n{body}\n</details>"


def _render_picture(picture: Picture) -> str:
    svg = to_svg(picture.figure, picture.name, escape(picture.title))
    return f"<figure>{svg}{_caption('figcaption', picture.title, picture.caption)}</figure>"


def _render_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = "\n".join(
        f"<tr{' class=mean' if index in table.means else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return (
        f'{_caption("p", table.title, table.caption)}\n<div class="scroll" tabindex="0">'
        f'<table aria-label="{escape(table.title)}">\n<thead><tr>{head}</tr></thead>'
        f"\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _caption(tag: str, title: str, text: str) -> str:
    return f'<{tag} class="caption"><b>{escape(title)}.</b> {escape(text)}</{tag}>'
