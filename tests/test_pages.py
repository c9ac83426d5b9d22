"""README.md and the pages in docs/: every command and snippet runs, and the site builds.

A block of code has a name in the comment before it, and is run by that name. Trainings are run in
small: another network, one epoch. `.ci/run` runs the two blocks that install.
"""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from cli import REPOSITORY, TINY
from PIL import Image

import siman_jax
from siman_jax.configs import cifar10, image_folder, imagenet

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- ([\w-]+) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
NOT_CODE = ("bibtex", "text")
DIGITS, SHORT = "--config=configs/digits.py", "--config.epochs=1"
SMALL = " ".join([DIGITS, SHORT, *TINY[1:]])
SMALL_FOLDER = f"--config=configs/image_folder.py {SHORT} {TINY[1]} {TINY[2]} --config.batch_size=8"
SMALL_SWEEP = (
    "--only=half_half --set=epochs=1 --set=model.name=cifar.vgg_small_1w1a --set=model.width=4"
    " --set=batch_size=256"
)

# Blocks by name. Of commands: what they print, and what else is put in place of which text.
RUN_BY_CI = {"install", "test"}
RUN_FIRST = {"quickstart-train": "top-1", "product": "median (ms)"}
COMMANDS = {
    "train": ("probability (%)", {}),
    "quickstart-eval": ("top-1", {}),
    "quickstart-summary": ("binary", {}),
    "quickstart-fields": ("top-1", {}),
    "quickstart-verify": ("checkpoint", {}),
    "data-folder": ("top-1", {SMALL: SMALL_FOLDER}),
    "data-source-command": ("top-1", {}),
    "own-network-command": ("top-1", {}),
    "config-command": ("top-1", {DIGITS: "--config=my_config.py"}),
    "rules-bop": ("top-1", {}),
    "trained-check": ("in the manifest", {}),
    "report": ("index.html: 3 runs", {}),
    "sweep": ("half_half", {"--workdir": f"{SMALL_SWEEP} --workdir"}),
}
NEEDS_TORCH = "product-torch"
WRITES_AN_IMAGE = "product-image"
SNIPPETS = {
    "layers": "",
    "trained-models": "digits/resnet20",
    "data-arrays": "",
    "product-python": "compression",
}
FILES = {"data-source": "my_data.py", "own-network": "my_networks.py", "config": "my_config.py"}


def blocks():
    """Name, language and code of every block of code, page after page."""
    return [found for page in PAGES for found in BLOCK.findall(page.read_text())]


def block(name):
    (code,) = (code for other, _, code in blocks() if other == name)
    return code


def execute(command, folder):
    """Run it in `folder`, where Python finds this repository's package."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_block(name, folder, replaced):
    code = re.sub(r"--config=[\w./:]+", SMALL, block(name))
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    return execute(["bash", "-euo", "pipefail", "-c", code], folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages speak of, a run on the digits and its model file."""
    folder = tmp_path_factory.mktemp("pages")
    for name, file in FILES.items():
        (folder / file).write_text(block(name))
    rng = np.random.default_rng(0)
    execute([sys.executable, "-c", block(WRITES_AN_IMAGE)], folder)
    for place in ("train/cats", "train/dogs", "test/cats", "test/dogs"):
        (folder / "photos" / place).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / place / f"{number}.png")
    for name, printed in RUN_FIRST.items():
        assert printed in run_block(name, folder, {})
    return folder


def test_every_block_of_code_is_run():
    """Here, or by .ci/run."""
    named = [name for name, language, _ in blocks() if language not in NOT_CODE]
    assert sorted(named) == sorted(
        {*RUN_BY_CI, *RUN_FIRST, *COMMANDS, *SNIPPETS, *FILES, NEEDS_TORCH, WRITES_AN_IMAGE}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_commands(folder, name):
    printed, replaced = COMMANDS[name]
    assert printed in run_block(name, folder, replaced)


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets(folder, name):
    fields = "config.model.name = 'cifar.vgg_small_1w1a'; config.model.width = 4; config.epochs = 1"
    small = f"def small(config):\n    {fields}; return config\n"
    code = block(name).replace("digits.get_config()", "small(digits.get_config())")
    assert SNIPPETS[name] in execute([sys.executable, "-c", small + code], folder)


@pytest.mark.slow
def test_from_pytorch_to_prediction(folder):
    torch = pytest.importorskip("torch")
    from golden_data import load_golden

    (folder / "resnet20.safetensors").unlink(missing_ok=True)  # of another block
    tensors = {name: torch.tensor(array) for name, array in load_golden("resnet20").arrays.items()}
    torch.save({"state_dict": tensors}, folder / "model_best.pth.tar")
    printed = execute(["bash", "-euo", "pipefail", "-c", block(NEEDS_TORCH)], folder)
    assert "a run at step 0" in printed
    assert "photos/train/cats/1.png" in printed


def code_in_pages():
    """Code in lines of text and in blocks."""
    texts = [page.read_text() for page in PAGES]
    spans = [span for text in texts for span in re.findall(r"`([^`\n]+)`", text)]
    return [*spans, *(code for _, language, code in blocks() if language not in NOT_CODE)]


def test_modules_in_pages_are_there():
    modules = {m for code in code_in_pages() for m in re.findall(r"python -m ([\w.]+)", code)}
    assert len(modules) > 8
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_fields_in_pages_are_there():
    known = set()
    for config in (cifar10.get_config(), image_folder.get_config(), imagenet.get_config()):
        for key, value in config.items():
            known |= {f"{key}.{field}" for field in value} if hasattr(value, "keys") else {key}
    named = {f for code in code_in_pages() for f in re.findall(r"--config\.([a-z][\w.]+)", code)}
    assert len(named) > 15
    assert named <= known
    page = (REPOSITORY / "docs" / "configs.md").read_text()
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", page))))
    assert {field.split(".")[-1] for field in known} - listed == set()


def test_flags_in_pages_are_there():
    """Those of the commands, or of a script."""
    for command in ("main", "sweep", "export", "predict", "convert", "report.__main__"):
        importlib.import_module(f"siman_jax.{command}")
    folders = ("benchmarks/*.py", "docs/claims/*.py", "launch/*.s*")
    scripts = [path for folder in folders for path in REPOSITORY.glob(folder)]
    others = {f for p in scripts for f in re.findall(r"--([a-z]\w*)", p.read_text())}
    named = {flag for code in code_in_pages() for flag in re.findall(r"--([a-z]\w*)", code)}
    assert len(named) > 20
    assert {f for f in named if not {f, f.removeprefix("no")} & {*flags.FLAGS, *others}} == set()


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_the_tree_in_contributing_names_every_room():
    rooms = {path.name for path in (REPOSITORY / "siman_jax").iterdir()}
    rooms -= {"__init__.py", "__pycache__", "py.typed"}
    (tree,) = re.findall(
        r"```text\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    assert rooms <= {word.removesuffix("/") for word in tree.split()}


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """Strictly: a link, or an anchor, that leads nowhere is an error."""
    execute(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"], REPOSITORY
    )
    reports = sorted(tmp_path.glob("results/*/report/index.html"))
    assert [path.parts[-3] for path in reports] == ["clip", "decay", "methods", "parts"]
    assert all("Report on" in path.read_text() for path in reports)
    assert "half_half_bits" in (tmp_path / "api" / "index.html").read_text()
    cards = (tmp_path / "trained" / "index.html").read_text()
    for model in siman_jax.trained_models():
        assert f"../{model.name.replace('/', '_')}.png" in cards
    for page in tmp_path.rglob("*.html"):  # nothing is fetched from elsewhere
        assert not re.search(r'(src|href)="https?://[^"]+\.(js|css|woff2?)"', page.read_text())
