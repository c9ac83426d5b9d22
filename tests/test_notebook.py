"""The notebook in launch/: clean as committed, and run from an empty folder."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

REPOSITORY = Path(__file__).parent.parent
NOTEBOOK = REPOSITORY / "launch" / "colab_cifar10_tpu.ipynb"
SMALL = [
    "--config.epochs=1",
    "--config.model.width=4",
    "--config.batch_size=256",
    "--config.eval_batch_size=100",
]
# Run after the last cell: the picture shows the bits of the parameters in the checkpoint.
CHECK_PICTURE = """
from siman_jax.models.leaves import binary_bits
parameters = load_run(config, Path(WORKDIR), make_mesh(1)).progress.state.params
expected = binary_bits(parameters, config.model.weight_rule)
for name in expected | bits:
    np.testing.assert_array_equal(expected[name], bits[name])
assert layer == "layer1_0/conv1"
assert 0.4 < np.mean(expected[layer]) < 0.6
assert picture.shape == (16, 16)
for row in range(4):
    for column in range(4):
        tile = picture[4 * row : 4 * row + 3, 4 * column : 4 * column + 3]
        np.testing.assert_array_equal(tile, expected[layer][:, :, column, row])
"""


@pytest.fixture
def source(tmp_path):
    """A git repository of the files as they are here."""
    folder = tmp_path / "source"
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("siman_jax", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=no_caches)
    git = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "test"]):
        subprocess.run([*git, *command], check=True)
    return folder


def prepare(tmp_path, monkeypatch, **parameters):
    """The notebook with other parameters, and a client that runs it in an empty folder."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # to compile fast
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    (tmp_path / "empty").mkdir()
    where = {"metadata": {"path": str(tmp_path / "empty")}}
    return notebook, NotebookClient(notebook, timeout=600, resources=where)


def printed(notebook, cell_id):
    (cell,) = (c for c in notebook.cells if c.id == cell_id)
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(notebook):
    return [
        (cell.id, output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def test_the_notebook_is_committed_clean():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
    for text, code in zip(notebook.cells[2::2], notebook.cells[3::2], strict=True):
        assert (text.cell_type, code.cell_type) == ("markdown", "code")
    paths = re.compile(r"/(home|root|Users|tmp|work|mnt|content)\b|[A-Z]:\\")
    assert not paths.search(NOTEBOOK.read_text())


@pytest.mark.slow
def test_the_notebook_runs(source, tmp_path, monkeypatch):
    """From the clone to the picture; the package itself is installed here already."""
    notebook, client = prepare(
        tmp_path,
        monkeypatch,
        SOURCE=str(source),
        CONFIG="configs/digits.py",
        FLAGS=SMALL,
        WORKDIR=str(tmp_path / "run"),
    )
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK_PICTURE))
    client.execute()
    assert (tmp_path / "empty" / "siman-jax" / "configs").is_dir()
    assert "falls back to cpu" in printed(notebook, "devices")
    assert "epoch   1" in printed(notebook, "train")
    assert "\x1b" not in printed(notebook, "train")  # plain lines, no bar
    assert [cell for cell, _ in pictures(notebook)] == ["curves", "filters"]
    assert "top-1 on the test split" in printed(notebook, "product")
    assert printed(notebook, "product").count("in truth") == 10


@pytest.mark.slow
def test_a_failing_training_fails_its_cell(source, tmp_path, monkeypatch):
    notebook, client = prepare(
        tmp_path,
        monkeypatch,
        SOURCE=str(source),
        CONFIG="configs/digits.py",
        FLAGS=["--config.epochs=0"],
        WORKDIR=str(tmp_path / "run"),
    )
    with pytest.raises(CellExecutionError, match="training ended with status 2"):
        client.execute()
    assert "epochs is 0; it must be at least 1" in printed(notebook, "train")
    assert not pictures(notebook)
