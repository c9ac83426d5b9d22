"""Converts figures to PNG files and to SVG elements of a page."""

import io
import re
from typing import TYPE_CHECKING

from siman_jax.report.figures import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_DPI = 160


def to_png(figure: "Figure") -> bytes:
    """Convert a figure to a PNG file with a white background."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    return file.getvalue()


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """Convert a figure to an `<svg>` element for a page.

    It scales with its container, has a transparent background, and uses the page's colour and font
    for text and axes.

    Args:
      figure: in the style of `figures`.
      name: keeps its internal ids distinct from those of other figures on the page.
      description: text for screen readers.
    """
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # these are equal in all figures, and unused
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"<[^>]*>", _round, svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    head = f'<svg {view_box[0]} role="img" aria-label="{description}">'
    return re.sub(r"<svg[^>]*>", head, svg, count=1).strip()


def _round(tag: re.Match[str]) -> str:
    """Round the numbers in a tag to hundredths of a pixel; text between tags stays."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])
