"""Figures as files and as parts of a page."""

import io
import re
from typing import TYPE_CHECKING

from siman_jax.report.figures import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_DPI = 160


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG file, on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    return file.getvalue()


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as an `<svg>` element that stands in a page.

    It scales with what holds it, lets the background through, and takes the page's colour and
    font for its text and axes.

    Args:
      figure: in the style of `figures`.
      name: sets its inner names apart from those of other figures on the page.
      description: what readers hear that cannot see it.
    """
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # alike in all figures, and of no use
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"<[^>]*>", _round, svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    head = f'<svg {view_box[0]} role="img" aria-label="{description}">'
    return re.sub(r"<svg[^>]*>", head, svg, count=1).strip()


def _round(tag: re.Match[str]) -> str:
    """The tag with hundredths of a pixel; what is written between tags stays."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])
