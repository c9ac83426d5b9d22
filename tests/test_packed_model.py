"""Tests of a model file as an object: accepted images, predictions, and refused notes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_example import packed_network

import siman_jax
from siman_jax.errors import UsageError
from siman_jax.models.normalization import normalize
from siman_jax.packed.inference import export_program
from siman_jax.packed.model import PackedModel
from siman_jax.packed.notes import Notes, parse_notes
from siman_jax.packed.program_file import write_program
from siman_jax.program.interpret import interpret


@cache
def network():
    return packed_network()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_program(path, network())
    return siman_jax.load(path)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("name", ["cifar.vgg_small_1w1a", "cifar.resnet20_1w1a"])
def test_logits_are_those_of_the_program_and_exact_ones_bit_for_bit(name, images):
    packed = packed_network(name)
    notes = PackedModel(packed).notes

    @jax.jit
    def by_xla(images):
        return interpret(packed.program, normalize(images, notes.mean, notes.std), native=False)

    expected = by_xla(images)
    np.testing.assert_array_equal(PackedModel(packed, exact=True)(images), expected)
    np.testing.assert_allclose(PackedModel(packed)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_from_0_to_1_are_pixels_over_255(model, images, dtype):
    levels = images // 255 * 255  # black and white are exact in every dtype
    np.testing.assert_allclose(model((levels / 255).astype(dtype)), model(levels), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_floats_one_step_beyond_the_range_are_clipped(model, images, dtype, as_array):
    """Scaling may leave such floats; they count as white and black."""
    levels = images // 255 * 255
    exact = (levels / 255).astype(dtype)
    step = np.finfo(dtype).eps
    beyond = as_array(np.where(exact == 1, exact + step, exact - step).astype(dtype))
    assert beyond.min() < 0
    np.testing.assert_array_equal(model(beyond), model(as_array(exact)))


def test_doubles_that_float32_rounds_to_1_are_taken(model):
    np.testing.assert_array_equal(
        model(np.full((1, 8, 8, 3), 1 + 1e-8)), model(np.ones((1, 8, 8, 3)))
    )


def test_jax_arrays_are_taken_too(model, images):
    np.testing.assert_array_equal(model(jnp.asarray(images)), model(images))


def test_floats_inside_jit_and_without_it(model, images):
    """A model inside of `jax.jit`, where values are unknown; and with JAX_DISABLE_JIT."""
    floats = np.float32(images) / 255
    np.testing.assert_allclose(jax.jit(model)(floats), model(floats), rtol=1e-5)
    with jax.disable_jit():
        np.testing.assert_allclose(model(floats), jax.jit(model)(floats), rtol=1e-4)
        export_program(model.network, model.notes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"shape \[8, 8, 3\]; expected .* one image of 8x8x3"),
        (np.zeros((8, 8, 3), np.uint8), r"single image; pass images\[None\]"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"shape \[1, 3, 8, 8\].*channels come first; numpy"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\].*channels come first; numpy"),
        (np.full((1, 8, 8, 3), 1.001, np.float32), "floats from 1.001 to 1.001; expected 0 to 1"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one"),
        (np.zeros((1, 8, 8, 3), np.int32), "dtype int32; expected uint8"),
        (np.full((1, 8, 8, 3), 255.0), "floats from 255 to 255; expected 0 to 1"),
        (np.full((1, 8, 8, 3), np.nan), "floats from nan to nan"),
    ],
)
def test_other_images_are_refused(model, wrong, message):
    with pytest.raises(UsageError, match=message):
        model(wrong)


def test_predictions_have_classes_probabilities_and_names(model, images):
    classes, probabilities, names = model.predict(images)
    logits = np.asarray(model(images))
    np.testing.assert_array_equal(classes, logits.argmax(axis=1))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=1e-5)
    assert names == ["abé"[index] for index in classes]


def test_without_class_names_their_numbers_stand_for_them(images):
    notes = network().notes | {"class_names": None}
    model = PackedModel(dataclasses.replace(network(), notes=notes))
    prediction = model.predict(images)
    assert prediction.names == [str(index) for index in prediction.classes]


def test_the_summary_counts_what_the_file_holds(model, capsys):
    model.summary()
    printed = capsys.readouterr().out
    # 1-bit 3x3 convolutions with 12 to 48 channels.
    binary = 9 * (12 * 12 + 12 * 24 + 24 * 24 + 24 * 48 + 48 * 48)
    assert f"{binary:,}" in printed
    real = sum(x.size for x in jax.tree.leaves(network().program) if x.dtype == jnp.float32)
    assert f"{real:,}" in printed
    assert "compression" in printed


def test_the_exported_program_takes_pixels_of_any_batch(model, images):
    program = jax.export.deserialize(bytearray(export_program(model.network, model.notes)))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    for taken in (images, images[:1]):
        np.testing.assert_allclose(program.call(taken), model(taken), rtol=1e-5, atol=1e-5)


def test_a_program_that_an_earlier_jax_exported_is_read(model, images):
    """As docs/product.md says; JAX 0.10.2 made it of the network that `model` is."""
    data = (REPOSITORY / "tests" / "golden" / "jax-0.10.2.stablehlo").read_bytes()
    logits = jax.export.deserialize(bytearray(data)).call(images)
    np.testing.assert_allclose(logits, model(images), rtol=1e-5, atol=1e-5)


def test_the_exported_program_tells_nothing_of_this_machine(model, tmp_path):
    """Another process, with the package in another folder, exports the same bytes."""
    program = export_program(model.network, model.notes)
    assert str(REPOSITORY).encode() not in program
    assert b".py" not in program
    package = tmp_path / "elsewhere" / "siman_jax"
    package.parent.mkdir()
    shutil.copytree(REPOSITORY / "siman_jax", package)
    write_program(tmp_path / "model", model.network)
    code = (
        "import sys, siman_jax; from siman_jax.packed.inference import export_program;"
        "model = siman_jax.load('model');"
        "open('program', 'wb').write(export_program(model.network, model.notes))"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        check=True,
    )
    assert (tmp_path / "program").read_bytes() == program


SPAWNED = """
import multiprocessing, sys
import numpy as np
import siman_jax

def logits(index):
    return np.asarray(siman_jax.load(sys.argv[1])(np.load(sys.argv[2])[index : index + 1]))

if __name__ == "__main__":
    siman_jax.load(sys.argv[1])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        np.save(sys.argv[3], np.concatenate(pool.map(logits, range(3))))
"""


@pytest.mark.slow
def test_processes_that_are_spawned_after_load_load_it_themselves(model, images, tmp_path):
    """As the page and the docstring advise; a forked process lacks JAX's threads."""
    advice = " ".join(siman_jax.load.__doc__.split())
    assert all(words in advice for words in ("forked processes lack", "`spawn`"))
    script, file, given, found = (tmp_path / name for name in ("s.py", "model", "x.npy", "y.npy"))
    script.write_text(SPAWNED)
    write_program(file, model.network)
    np.save(given, images)
    subprocess.run(
        [sys.executable, script, file, given, found],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        timeout=600,
    )
    np.testing.assert_allclose(np.load(found), model(images), rtol=1e-5, atol=1e-5)


def test_importing_the_package_imports_no_jax():
    code = "import sys, siman_jax; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


WRONG = {
    "no mean": ({"mean": None}, "its mean is None; expected a list of 3 numbers"),
    "another count": ({"std": [1.0]}, r"its std is \[1.0\]"),
    "true": ({"mean": [True, 0, 0]}, "its mean"),
    "huge": ({"mean": [10**400, 0, 0]}, "its mean"),
    "std of 0": ({"std": [0.1, 0.0, 0.1]}, "expected numbers above 0"),
    "tiny std": ({"std": [0.1, 1e-320, 0.1]}, "which float32 cannot normalize by"),
    "mean over std": ({"mean": [0, 1e29, 0], "std": [1e-12] * 3}, "cannot normalize by"),
    "names": ({"class_names": ["a"]}, "1 class_names for 3 classes"),
    "no names": ({"class_names": [1, 2, 3]}, "not a list of strings"),
    "side": ({"shorter_side": 4}, "shorter_side is 4; expected a whole number from 8"),
    "resize": ({"resize": "yes"}, "its resize is 'yes'"),
    "orientation": ({"exif_orientation": 1}, "its exif_orientation is 1; expected true or false"),
    "background": (
        {"background": 256},
        "its background is 256; expected a whole number from 0 to 255",
    ),
    "no level": ({"background": True}, "its background is True"),
    "accuracy": ({"accuracy": {"top1": "high"}}, "its accuracy"),
    "digest": ({"config_sha256": 1}, "its config_sha256"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_notes_are_named(tmp_path, case):
    change, message = WRONG[case]
    path = tmp_path / "model.safetensors"
    write_program(path, dataclasses.replace(network(), notes=network().notes | change))
    with pytest.raises(UsageError, match=message):
        siman_jax.load(path)


def test_what_is_not_known_is_passed_over():
    notes = Notes((0.5,), (0.5,), shorter_side=256).as_json()
    assert parse_notes(notes | {"author": "x"}, (224, 224, 1), 2) == parse_notes(
        notes, (224, 224, 1), 2
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Notes)]), values))
def test_any_notes_are_read_or_refused(changes):
    notes = json.loads(json.dumps(network().notes | changes))
    try:
        known = parse_notes(notes, (8, 8, 3), 3)
    except UsageError:
        return
    assert len(known.mean) == len(known.std) == 3
    assert known.class_names is None or len(known.class_names) == 3
