r"""Safe text for terminals: control characters are shown as escapes, such as \x1b.

Names of files and classes may contain any character. Some of them would control the terminal, and
others cannot be shown.
"""

import sys
import unicodedata

from rich.console import Console

# Control characters, including those that change the direction of text; surrogates; separators.
_ODD = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of class Cf, but some languages need them
_WIDTH = 120


def shown(text: str, keep: str = "") -> str:
    r"""Escape control characters and surrogates.

    Args:
      text: the text to show.
      keep: control characters to leave unchanged, such as "\n" in a text of several lines.

    >>> print(shown("cat\x1b[2J\n"))
    cat\x1b[2J\n
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _ODD and char not in _JOINERS + keep
        else char
        for char in text
    )


def say(text: str) -> None:
    """Print a message to standard error."""
    print(shown(text, keep="\n\t"), file=sys.stderr, flush=True)


def accept_any_text() -> None:
    """Make output streams escape characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def wide_console() -> Console:
    """Make a console for tables; without a terminal it is wide enough to cut nothing off.

    Brackets are printed as they are, not read as markup.
    """
    console = _Console(markup=False)
    return console if console.is_terminal else _Console(markup=False, width=_WIDTH)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let `command.run` handle a closed pipe; rich would exit with status 1."""
        raise  # the BrokenPipeError that is being handled
