"""Folders in results/: each explains itself, links lead somewhere, and its commands run."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from cli import REPOSITORY, call, run
from PIL import Image

from siman_jax.report import __main__ as report
from siman_jax.runs.log import read_rows

RESULTS = REPOSITORY / "results"
FOLDERS = sorted(path for path in RESULTS.iterdir() if path.is_dir())
PAGES = sorted({*RESULTS.glob("*.md"), *RESULTS.glob("*/*.md")})


def links(page):
    """What a page links to or shows within the repository."""
    found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
    return [(page.parent / link).resolve() for link in found if "://" not in link]


def test_each_folder_has_a_readme_and_is_in_the_list():
    listed = links(RESULTS / "README.md")
    assert [folder.name for folder in FOLDERS if folder / "README.md" not in listed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(RESULTS)))
def test_links_lead_somewhere(page):
    assert [str(link) for link in links(page) if not link.exists()] == []


def test_each_figure_is_on_a_page():
    shown = {link for page in PAGES for link in links(page)}
    figures = {path for folder in FOLDERS for path in folder.glob("*.png")}
    assert sorted(str(path) for path in figures - shown) == []


def commands():
    """The commands that the pages name: folder, module and words after it."""
    found = []
    for page in PAGES:
        for module, rest in re.findall(r"python -m ([\w.]+)((?:[^`\n\\]|\\\n)*)", page.read_text()):
            words = rest.replace("\\\n", " ").split()
            found.append((page.parent.name, module, words))
    return found


def command(folder, module):
    (words,) = (words for *where, words in commands() if where == [folder, module])
    return words


def placed(words, **places):
    """Put other values in place of those of some flags."""
    names = [word.removeprefix("--").partition("=")[0] for word in words]
    assert places.keys() <= set(names)
    return [
        f"--{name}={places[name]}" if name in places else word
        for name, word in zip(names, words, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "variant"),
    [
        ("methods", "half_half"),
        ("decay", "half_half_l2_100"),
        ("clip", "decaying_25"),
        ("parts", "bnn_siman"),
    ],
)
def test_the_report_is_made_from_the_logs_alone(study, variant, tmp_path):
    """By the command in the study's README, of one of its variants."""
    runs, *others = placed(command(study, "siman_jax.report"), out=tmp_path)
    assert runs == f"results/{study}/*/seed*"
    call(report.main, *sorted((RESULTS / study / variant).glob("seed*")), *others)
    (group,) = json.loads((tmp_path / "report.json").read_text())["groups"]
    top1 = group["at_the_end"]["last_test_top1"]
    assert top1["n"] == 3
    assert f"{top1['mean']:.1f} ± {top1['std']:.1f}" in (RESULTS / study / "README.md").read_text()
    assert (tmp_path / "figures" / "accuracy.png").is_file()
    assert "<svg" in (tmp_path / "index.html").read_text()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty small images of ten classes, in both splits."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "test"), range(10), range(2)):
        place = folder / split / str(name)
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


SMALL = {"epochs": 1, "batch_size": 4, "model.name": "cifar.vgg_small_1w1a", "model.width": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["digits_resnet20_12epochs", "cifar10_jpeg_resnet20_10epochs", "published_resnet20"]
)
def test_the_command_of_a_run_trains(folder, images, tmp_path):
    words = command(folder, "siman_jax.main")
    small = SMALL | {"batch_size": 256, "optimizer.warmup_epochs": 1}
    places = {"workdir": tmp_path}
    if "--config=configs/image_folder.py" in words:
        small |= {"batch_size": 4, "data.image_size": 8, "eval_batch_size": 4}
        places |= {"config.data.root": images}
    fields = [f"--config.{name}={value}" for name, value in small.items()]
    result = run("main", *placed(words, **places), *fields)
    assert result.returncode == 0, result.stderr
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1]


BENCHMARKS = sorted({module for _, module, _ in commands() if not module.startswith("siman_jax.")})


@pytest.mark.slow
@pytest.mark.parametrize("module", BENCHMARKS)
def test_flags_of_other_commands_are_there(module):
    """Benchmarks and campaigns take long; `test_benchmarks` and `test_torture` run them small."""
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    named = {
        flag
        for _, other, words in commands()
        if other == module
        for flag in re.findall(r"--[a-z]\w*", " ".join(words))
    }
    assert named - set(re.findall(r"--[a-z]\w*", shown)) == set()


def test_every_command_is_tried():
    """By one of the tests above, but for those of sweeps, which `test_pages` runs on the digits."""
    tried = {"siman_jax.main", "siman_jax.report", *BENCHMARKS}
    assert {module for _, module, _ in commands()} - tried == {"siman_jax.sweep"}
    assert len(commands()) > 30
