"""The commands of the README's way from checkpoint to product, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli import REPOSITORY
from PIL import Image

SMALL = "--config.epochs=1 --config.model.width=4 --config.batch_size=256"


def block(marker):
    """The code that follows `<!-- marker -->`."""
    text = (REPOSITORY / "README.md").read_text()
    (code,) = re.findall(rf"<!-- {marker} -->\n```\w*\n(.*?)```", text, re.DOTALL)
    return code


def execute(command, folder):
    """Run it in `folder`, which sees this repository's package and configs."""
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


@pytest.fixture
def folder(tmp_path):
    """An empty folder but for the configs and some images."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "digit.png")
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "photos" / "1.jpg")
    return tmp_path


@pytest.mark.slow
def test_from_training_to_prediction(folder):
    commands = block("product").replace("--workdir=runs/digits", f"--workdir=runs/digits {SMALL}")
    printed = execute(["bash", "-euo", "pipefail", "-c", commands], folder)
    for expected in ("digits.safetensors: ", "StableHLO", "probability (%)", "median (ms)"):
        assert expected in printed
    assert "compression" in execute([sys.executable, "-c", block("product-python")], folder)


@pytest.mark.slow
def test_own_network_and_arrays(folder):
    (folder / "my_networks.py").write_text(block("own-network"))
    command = f"{block('own-network-command').strip()} --config.epochs=1"
    assert "top-1" in execute(["bash", "-euo", "pipefail", "-c", command], folder)
    arrays = (
        "import numpy as np\n"
        "train_images = test_images = np.tile(np.uint8([0, 255])[:, None, None, None],"
        " (128, 8, 8, 1))\ntrain_labels = test_labels = np.arange(256) % 2\n"
    )
    short = block("own-arrays").replace("digits.get_config()", "config")
    setting = "from configs import digits\nconfig = digits.get_config()\nconfig.epochs = 1\n"
    network = "config.model.name = 'my_networks:small'\n"
    printed = execute([sys.executable, "-c", arrays + setting + network + short], folder)
    assert 50 <= float(printed.splitlines()[-1]) <= 100


@pytest.mark.slow
def test_from_pytorch_to_prediction(folder):
    torch = pytest.importorskip("torch")
    from golden_data import load_golden

    tensors = {name: torch.tensor(array) for name, array in load_golden("resnet20").arrays.items()}
    torch.save({"state_dict": tensors}, folder / "model_best.pth.tar")
    printed = execute(["bash", "-euo", "pipefail", "-c", block("product-torch")], folder)
    assert "a run at step 0" in printed
    assert "photos/1.jpg" in printed
