"""A bounded part of the torture; what it found before; and that it would notice what it looks for.

All of it: python -m tests.torture
"""

import json
import logging
import subprocess
import sys

import pytest
from cli import REPOSITORY

from tests.torture.campaign import FINDINGS, add_up, run_campaign
from tests.torture.case import Unavailable, random
from tests.torture.kinds import KINDS, load_kind
from tests.torture.pool import run_cases

# Damaged images make libraries warn.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Makes each kind once, in this process."""
    logger = logging.getLogger("siman_jax")
    before = logger.level, logger.propagate, [*logger.handlers]
    made = {}

    def make(name):
        if name not in made:
            try:
                made[name] = load_kind(name)(tmp_path_factory.mktemp(name))
            except Unavailable as reason:
                pytest.skip(str(reason))
        return made[name]

    yield make
    logger.level, logger.propagate, logger.handlers = before


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("model_files", 60),
        ("program_files", 100),
        ("images", 150),
        ("records", 5),
        ("configs", 4),
        ("checkpoints", 6),
        ("native_calls", 8),
    ],
)
def test_a_few_cases(name, cases, kinds):
    kind = kinds(name)
    counts = {}
    for number in range(cases):
        case = kind.make(random(name, 0, number))
        assert case == kind.make(random(name, 0, number))
        for word, times in kind.check(case).items():
            counts[word] = counts.get(word, 0) + times
    assert counts.get("refused", 1)  # the cases are as hostile as they should be
    assert sum(counts.values()) >= cases


STORED = sorted(path for path in FINDINGS.glob("*/*") if path.suffix != ".txt")


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_is_mended(path, kinds):
    kinds(path.parent.name).check(path.read_bytes())


def test_crashes_hangs_and_exceptions_are_noticed(tmp_path):
    paths = []
    for word in ("fine", "crash", "prints", "hang", "finding", "exception", "fine"):
        paths.append(tmp_path / f"{len(paths)}-{word}")
        paths[-1].write_text(word)
    found = {result.case: result for result in run_cases("faulty", 0, paths)}
    assert len(found) == len(paths)
    for path, (word, text) in zip(
        paths,
        [
            ("ok", ""),
            ("finding", "crash: status -6"),
            ("ok", ""),
            ("finding", "hang: over 5 s"),
            ("finding", "something is wrong"),
            ("finding", "IndexError: of the product"),
            ("ok", ""),
        ],
        strict=True,
    ):
        assert found[str(path)].word == word
        assert text in found[str(path)].text


def test_a_campaign_counts_and_keeps_what_it_finds(tmp_path, capsys):
    run = run_campaign(5, ["faulty"], seed=3, most=8, keep=tmp_path)
    row = run["kinds"]["faulty"]
    assert row["cases"] == 8
    assert len(row["findings"]) + sum(row["counts"].values()) == 8
    kept = {path.read_text() for path in (tmp_path / "faulty").glob("3-*") if not path.suffix}
    assert kept
    assert kept <= {"crash", "hang", "finding", "exception"}
    assert "faulty" in capsys.readouterr().out
    assert add_up([run, run])["faulty"]["cases"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kills", "disks", "writers", "sanitized_calls"])
def test_a_case_that_takes_longer(name, tmp_path):
    line = ["--cases=1", "--minutes=5", f"--only={name}", f"--json={tmp_path / 'out.json'}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", *line, f"--keep={tmp_path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "out.json").read_text())["kinds"][name]
    if row["unavailable"]:
        pytest.skip(row["unavailable"])
    assert row["cases"] == 1
    assert not row["findings"]


def test_every_kind_has_an_entry():
    assert all(load_kind(name) for name in KINDS)
