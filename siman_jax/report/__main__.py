"""Command line: write a report on one or more runs.

    python -m siman_jax.report runs/digits_0 runs/digits_1 --out=report
    python -m siman_jax.report runs/a runs/b --labels=decayed,free --gradients=32

Writes a self-contained page, index.html, its figures as PNG files in figures/, and all its numbers
in report.json. Runs that differ only in their seed are shown as mean and spread. Parts of a run
that cannot be read are left out; messages and the page name them.

Exit status: 0 if all went well, 1 if something was left out, 2 for bad arguments or input.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from siman_jax.analysis.gradients import gradient_mismatch
from siman_jax.command import run
from siman_jax.data import class_names
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.output import write_whole
from siman_jax.paths import local_path
from siman_jax.report.contents import Mismatches, make_sections
from siman_jax.report.groups import group_runs
from siman_jax.report.numbers import collect_numbers
from siman_jax.report.page import Section, render_page
from siman_jax.report.runs import Run, read_run
from siman_jax.report.svg import to_png
from siman_jax.runs.trained_on import check_classes
from siman_jax.runs.workdir import check_writable
from siman_jax.terminal import say, shown

SOME_LEFT_OUT = 1
DEFAULT_OUT = "report"
PAGE, NUMBERS, FIGURES = "index.html", "report.json", "figures"

# Other commands have flags of some of these names, and tests import several commands.
_OUT = flags.DEFINE_string("out", None, "Folder to write; report/ by default.", allow_override=True)
_LABELS = flags.DEFINE_list(
    "labels",
    None,
    "Names of the runs, in their order; by default those of their folders, with as many parent"
    " folders as needed to tell them apart.",
)
_GRADIENTS = flags.DEFINE_integer(
    "gradients",
    0,
    "Number of random directions per layer, at least 2, to compare the straight-through gradient"
    " with the loss on a batch of the run's data; 0 for no comparison. Each takes two forward"
    " passes per layer.",
    lower_bound=0,
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace an existing report.", allow_override=True
)


def main(argv: list[str]) -> None:
    """Run the command."""
    workdirs = [local_path(name, "run") for name in argv[1:]]
    if not workdirs:
        raise UsageError("name the folders of runs, such as runs/digits; flags are --NAME=VALUE.")
    labels = name_runs(workdirs, _LABELS.value)
    out = local_path(_OUT.value or DEFAULT_OUT, "--out")
    check_folder(out, _OVERWRITE.value)
    if _GRADIENTS.value == 1:
        raise UsageError("--gradients=1 is too few to measure agreement; set it to 2 or more.")
    # The same numbers on every machine; and a TPU that is training is not disturbed.
    jax.config.update("jax_platforms", "cpu")
    runs, problems = _read(workdirs, labels)
    if not runs:
        raise UsageError(
            "none of the runs can be read:\n  "
            + "\n  ".join(f"{label}: {problem}" for label, problem in problems)
        )
    mismatches = _compare_gradients(runs, problems) if _GRADIENTS.value else {}
    groups = group_runs(runs)
    sections = make_sections(groups, mismatches)
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    page = render_page(
        f"Report on {count}", ", ".join(run.label for run in runs), problems, sections
    )
    numbers = collect_numbers(groups, problems, mismatches)
    write_report(out, page, json.dumps(numbers, indent=1, allow_nan=False), sections)
    print(shown(f"{out / PAGE}: {count}, {len(page) / 1e3:,.0f} kB"))
    if problems:
        for label, problem in problems:
            say(f"left out: {label}: {problem}")
        sys.exit(SOME_LEFT_OUT)


def name_runs(workdirs: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    """Return a unique name for each run, with unprintable characters escaped.

    Raises:
      UsageError: a run or a label is given twice, or there are not as many labels as runs.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UsageError("a run is given twice; name each only once.")
    if labels:
        if len(labels) != len(workdirs):
            raise UsageError(
                f"--labels has {len(labels)} names for {len(workdirs)} runs; give one for each."
            )
        if len(set(labels)) < len(labels):
            raise UsageError("--labels has the same name twice; name each run differently.")
        return [shown(label) for label in labels]
    paths = [workdir.resolve().parts[1:] or ("/",) for workdir in workdirs]
    depths = range(1, max(map(len, paths)) + 1)
    depth = next(n for n in depths if len({path[-n:] for path in paths}) == len(paths))
    return [shown("/".join(path[-depth:])) for path in paths]


def check_folder(out: Path, overwrite: bool) -> None:
    """Check, before any work, that the report can be written; nothing is written.

    Raises:
      UsageError: the folder is a file, holds anything but a report that may be replaced, or cannot
        be created or written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out={out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / NUMBERS).is_file():
            raise UsageError(f"--out={out} holds other files; name another folder.")
        if not overwrite:
            raise UsageError(
                f"--out={out} holds a report; name another folder, or replace it by --overwrite."
            )
    check_writable(out, "out")


def write_report(out: Path, page: str, numbers: str, sections: Sequence[Section]) -> None:
    """Write the page, its numbers and its figures, replacing those of an earlier report.

    Raises:
      UsageError: they cannot be written, for example because the disk is full.
    """
    figures = out / FIGURES
    try:
        figures.mkdir(parents=True, exist_ok=True)
        for old in figures.glob("*.png"):
            old.unlink()
    except OSError as error:
        raise UsageError(f"--out={out} cannot be written: {error}.") from error
    write_whole(out / NUMBERS, numbers.encode())
    for section in sections:
        for picture in section.pictures:
            write_whole(figures / f"{picture.name}.png", to_png(picture.figure))
    write_whole(out / PAGE, page.encode())


def _read(
    workdirs: Sequence[Path], labels: Sequence[str]
) -> tuple[list[Run], list[tuple[str, str]]]:
    """Read runs; return those that can be read, and all problems with their labels."""
    runs, problems = [], []
    for workdir, label in zip(workdirs, labels, strict=True):
        say(f"reading {workdir}")
        try:
            read = read_run(workdir, label, make_mesh(1))
        except (UsageError, OSError) as error:  # OSError for example for missing permissions
            problems.append((label, str(error)))
            continue
        runs.append(read)
        problems += [(label, problem) for problem in read.problems]
    return runs, problems


def _compare_gradients(runs: Sequence[Run], problems: list[tuple[str, str]]) -> Mismatches:
    """Measure gradient mismatch for the runs whose data can be used; add others to `problems`."""
    mismatches = {}
    for read in runs:
        if read.state is None or not read.checkpoints[-1].layers:
            continue
        say(f"comparing gradients of {read.label}")
        try:
            check_classes(class_names(read.config.data), read.workdir)
            mismatches[read.label] = gradient_mismatch(
                read.config, read.state, make_mesh(1), _GRADIENTS.value
            )
        # AttributeError if the config is of another version.
        except (UsageError, OSError, AttributeError) as error:
            problems.append((read.label, f"gradients: {error}"))
    return mismatches


if __name__ == "__main__":
    run(main)
