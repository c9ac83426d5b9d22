"""Makes the examples in docstrings blocks of code on the API page, for mkdocstrings."""

import re

from griffe import Extension, Object

# From a line that starts with >>> to the next empty line.
_EXAMPLE = re.compile(r"^>>> .*\n?(?:^.+\n?)*", re.MULTILINE)


class Doctests(Extension):
    """Puts a fence around each example."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(example: re.Match[str]) -> str:
    return f"```pycon\n{example[0].rstrip()}\n```\n"
