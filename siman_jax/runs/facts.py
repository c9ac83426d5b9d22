"""Small files of facts about a run, as JSON in its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.errors import UsageError
from siman_jax.output import write_whole


def write_facts(facts: Mapping[str, Any], path: Path) -> None:
    """Store facts about a run, in process 0.

    Raises:
      UsageError: the file cannot be written; raised in all processes.
    """
    problem = ""
    if is_first_process():
        try:
            write_whole(path, (json.dumps(facts, indent=2) + "\n").encode())
        except UsageError as error:
            problem = str(error)
    if not all_agree(not problem):
        raise UsageError(problem or f"the first process cannot write {path}.")
