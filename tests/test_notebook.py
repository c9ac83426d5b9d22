"""The notebooks in launch/: clean as committed, and run from an empty folder."""

import re
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "launch").glob("*.ipynb"))
SMALL = [
    "--config.epochs=1",
    "--config.model.width=4",
    "--config.batch_size=256",
    "--config.eval_batch_size=100",
]
# Run after the last cell of magnitude_or_sign: drawn weights have the optimum that theory says.
CHECK_OPTIMA = """
for shape, sample in draw.values():
    shares, heights = cosines_by_share(jnp.float32(sample(WEIGHTS, 1)))
    best = np.argmax(heights[:, 0])
    np.testing.assert_allclose(shares[best], optimum(shape).share, atol=0.06)
    np.testing.assert_allclose(heights[best, 0], optimum(shape).cosine, atol=0.01)
    np.testing.assert_allclose(heights[-1, 0], optimum(shape).sign_cosine, atol=0.01)
    half = np.argmin(np.abs(shares - 0.5))
    np.testing.assert_allclose(heights[half, 0], optimum(shape).half_half_cosine, atol=0.01)
"""
# Run after the last cell of own_network_and_data: its evaluation is that of the log and
# of the model file, up to an image that rounding decides.
CHECK_EVALUATION = """
assert set(dataset.classes) == set(NAMES)
assert len(labels) == 360
assert abs(100 * np.mean(guesses == labels) - results["last"]["top1"]) < 0.6
assert results["best"]["top1"] > 30
assert np.sum(predicted.classes != guesses) <= 1
assert predicted.names == [dataset.classes[index] for index in predicted.classes]
assert np.array_equal(siman_jax.load(model_file).predict(images).classes, predicted.classes)
"""
# Run after the last cell of colab_cifar10_tpu: the picture shows the bits of the parameters in the
# checkpoint.
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
    for name in ("siman_jax", "configs", "results/decay"):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=no_caches)
    git = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "test"]):
        subprocess.run([*git, *command], check=True)
    return folder


def prepare(name, tmp_path, monkeypatch, **parameters):
    """A notebook with other parameters, and a client that runs it in an empty folder."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # to compile fast
    notebook = nbformat.read(REPOSITORY / "launch" / f"{name}.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    (tmp_path / "empty").mkdir()
    where = {"metadata": {"path": str(tmp_path / "empty")}}
    return notebook, NotebookClient(notebook, timeout=600, resources=where)


def printed(notebook, cell_id):
    (cell,) = (c for c in notebook.cells if c.id == cell_id)
    # In a notebook rich displays what it prints elsewhere.
    displayed = (output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    streamed = (output.get("text", "") for output in cell.outputs)
    return "".join([*streamed, *displayed])


def pictures(notebook):
    return [
        (cell.id, output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def test_the_notebooks_are_there():
    names = ["colab_cifar10_tpu", "magnitude_or_sign", "own_network_and_data"]
    assert [notebook.stem for notebook in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
    pairs = zip_longest(notebook.cells[2::2], notebook.cells[3::2])
    for text, code in pairs:
        assert text.cell_type == "markdown"
        assert code is None or code.cell_type == "code"  # the last text may stand alone
    assert re.search("Where to run|Runtime > Change runtime type", notebook.cells[0].source)
    paths = re.compile(r"/(home|root|Users|tmp|work|mnt|content)\b|[A-Z]:\\")
    assert not paths.search(path.read_text())


@pytest.mark.slow
def test_the_tpu_notebook_runs(source, tmp_path, monkeypatch):
    """From the clone to the picture; the package itself is installed here already."""
    notebook, client = prepare(
        "colab_cifar10_tpu",
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
        "colab_cifar10_tpu",
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


@pytest.mark.slow
def test_magnitude_or_sign_runs(source, tmp_path, monkeypatch):
    notebook, client = prepare(
        "magnitude_or_sign", tmp_path, monkeypatch, SOURCE=str(source), WEIGHTS=20_000
    )
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK_OPTIMA))
    client.execute()
    drawn = [cell for cell, _ in pictures(notebook)]
    assert drawn == ["two-weights", "one-filter", "how-many", "shapes", "entropy", "layers"]
    assert re.search(r"Laplacian +theory +0.368 +0.949 +0.858", printed(notebook, "theory"))


@pytest.mark.slow
def test_own_network_and_data_runs(source, tmp_path, monkeypatch):
    notebook, client = prepare(
        "own_network_and_data",
        tmp_path,
        monkeypatch,
        SOURCE=str(source),
        IMAGES=str(tmp_path / "images"),
        WORKDIR=str(tmp_path / "run"),
        EPOCHS=2,
    )
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK_EVALUATION))
    client.execute()
    assert [cell for cell, _ in pictures(notebook)] == ["show-images", "curves", "predict"]
    assert "compression" in printed(notebook, "summary")
    assert "epoch   2" in printed(notebook, "train")
    assert "of 360 test images are right" in printed(notebook, "predict")
    assert "top-1 on the test split" in printed(notebook, "pack")
    assert "binary_conv" in printed(notebook, "pack")
