r"""Text for terminals, which obey some characters and cannot show others.

Names of files and classes may hold anything. Commands show their odd characters as escapes, such as
\x1b, and send none of them.
"""

import sys
import unicodedata

from rich.console import Console

# Controls, among them those that turn the direction of text; surrogates; odd ends of lines.
_ODD = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # Cf too, and needed to write some languages
_WIDTH = 120


def shown(text: str, keep: str = "") -> str:
    r"""Escape what a terminal would obey, and surrogates.

    Args:
      text: any.
      keep: characters to leave as they are, such as "\n" in a text of several lines.

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
    """Print a message on standard error."""
    print(shown(text, keep="\n\t"), file=sys.stderr, flush=True)


def accept_any_text() -> None:
    """Let output streams escape what their encoding lacks, where they would raise errors."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def wide_console() -> Console:
    """A console for tables, which cuts nothing off where no terminal limits the width.

    Brackets in what it prints are text, not markup.
    """
    console = _Console(markup=False)
    return console if console.is_terminal else _Console(markup=False, width=_WIDTH)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to `command.run`, where rich would end with status 1."""
        raise  # the error that is being handled
