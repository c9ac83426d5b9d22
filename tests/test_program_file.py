"""Version 2 of the model file: programs come back as they were, and bad files are refused."""

import json
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import jax
import numpy as np
import numpy_reader
import pytest
from cli import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from program_example import every_operation

import siman_jax
from siman_jax.errors import UsageError
from siman_jax.models import build_model
from siman_jax.models.normalization import normalize
from siman_jax.native import library
from siman_jax.packed.inference import export_program
from siman_jax.packed.notes import Notes, parse_notes
from siman_jax.packed.program_file import (
    PackedProgram,
    decode_program,
    encode_program,
    write_program,
)
from siman_jax.packed.safetensors import decode, encode
from siman_jax.program.interpret import interpret
from siman_jax.program.operations import OPERATIONS
from siman_jax.program.trace import tracer

NOTES = Notes((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), class_names=("a", "b", "é")).as_json()
PROGRAM = every_operation()
DATA = encode_program(PackedProgram(PROGRAM, NOTES))


def assert_same(found, expected):
    assert found.result == expected.result
    for one, other in zip(found.operations, expected.operations, strict=True):
        assert type(one) is type(other)
        assert one.path == other.path
        assert one.weights().keys() == other.weights().keys()
        for name, weight in one.weights().items():
            np.testing.assert_array_equal(weight, other.weights()[name])
        plain = [{**vars(x), **dict.fromkeys(x.weights())} for x in (one, other)]
        assert plain[0] == plain[1]


def test_the_example_has_every_operation():
    assert {type(one) for one in PROGRAM.operations} == set(OPERATIONS.values())


def test_a_program_comes_back_as_it_was():
    found = decode_program(DATA)
    assert found.notes == NOTES
    assert (found.image_shape, found.num_classes) == ((6, 6, 3), 3)
    assert_same(found.program, PROGRAM)
    assert encode_program(found) == DATA


def test_tensors_have_the_paths_of_their_modules():
    tensors, _ = decode(DATA)
    assert {"stem/conv/kernel", "body/words", "excite/kernel", "position/value"} <= tensors.keys()


def test_float16_rounds_what_is_not_binary():
    half = decode_program(encode_program(PackedProgram(PROGRAM, NOTES), np.float16)).program
    rounded = jax.tree.map(
        lambda x: np.float32(np.float16(x)) if x.dtype == np.float32 else x, PROGRAM
    )
    assert_same(half, rounded)


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 4.25e6), (np.float16, 2.83e6)])
def test_size_of_resnet18(dtype, most):
    model = build_model("imagenet.resnet18_1w1a", 1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    shapes = jax.eval_shape(tracer(model, variables, (224, 224, 3)), variables)
    program = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    assert len(encode_program(PackedProgram(program, NOTES), dtype)) < most
    words = [array for _, name, array in program.tensors() if name == "words"]
    assert sum(array.nbytes for array in words) * 32 == 4 * 10_985_472


def test_values_that_are_not_finite_are_not_written():
    large = jax.tree.map(lambda x: x + 1e6 if x.dtype == np.float32 else x, PROGRAM)
    with pytest.raises(UsageError, match=r"stem/conv/kernel'? holds a value that is not finite"):
        encode_program(PackedProgram(large, NOTES), np.float16)


def test_a_loaded_model_predicts_and_says_what_it_costs(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    write_program(path, PackedProgram(PROGRAM, NOTES))
    model = siman_jax.load(path)
    images = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3), np.uint8)
    normalized = normalize(images, NOTES["mean"], NOTES["std"])
    expected = jax.jit(interpret)(PROGRAM, normalized)
    np.testing.assert_array_equal(siman_jax.load(path, exact=True)(images), expected)
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-6)
    assert model.predict(images).names == [("a", "b", "é")[i] for i in expected.argmax(1)]
    model.summary()
    assert "stem/conv" in capsys.readouterr().out
    exported = export_program(model.network, model.notes)
    found = jax.export.deserialize(bytearray(exported)).call(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


WITHOUT_JAX = """
import pickle, sys
import numpy as np
import siman_jax
model = siman_jax.load(sys.argv[1])
images = np.load(sys.argv[2])
again = pickle.loads(pickle.dumps(model))
names = model.predict(images, threads=1).names
assert again.predict(images).names == names
assert not {"jax", "jaxlib", "flax"} & sys.modules.keys()
print(model, *names)
"""


@pytest.mark.skipif(not library.variants(), reason="the native library was not built")
def test_a_program_runs_without_jax(tmp_path):
    path, images = tmp_path / "model.safetensors", tmp_path / "images.npy"
    write_program(path, PackedProgram(PROGRAM, {**NOTES, "class_names": ["a", "b", "c"]}))
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3), np.uint8)
    np.save(images, pixels)
    command = [sys.executable, "-c", WITHOUT_JAX, path, images]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = siman_jax.load(path, exact=True).predict(pixels).names
    assert done.stdout.split(", ")[1].split() == ["natively>", *names]


def test_bytes_and_open_files_are_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DATA)
    images = np.zeros((2, 6, 6, 3), np.uint8)
    expected = siman_jax.load(path)(images)
    np.testing.assert_array_equal(siman_jax.load(DATA)(images), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(siman_jax.load(file)(images), expected)
    with pytest.raises(UsageError, match="the bytes are not a usable model file: it has only 3"):
        siman_jax.load(b"abc")


def test_inside_jit_it_is_the_same():
    model = siman_jax.load(DATA)
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 6, 3), np.uint8)
    found = jax.jit(model)(images)
    np.testing.assert_allclose(found, model(images), rtol=1e-5, atol=1e-6)


def test_numpy_alone_reads_and_runs_the_file():
    """The reader is written from the page about the model file, and not from the package."""
    images = np.random.default_rng(2).integers(0, 256, (4, 6, 6, 3), np.uint8)
    normalized = normalize(images, NOTES["mean"], NOTES["std"])
    expected = jax.jit(interpret)(PROGRAM, normalized)
    np.testing.assert_allclose(numpy_reader.run(DATA, images), expected, rtol=1e-5, atol=1e-6)
    source = Path(numpy_reader.__file__).read_text()
    assert len(source.splitlines()) <= 150
    assert "siman_jax" not in source


def test_the_page_lists_all_operations_with_their_settings():
    page = (REPOSITORY / "docs" / "model_file.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    for name, kind in OPERATIONS.items():
        (row,) = (row for row in rows if f"`{name}`" in row.split("|")[1])
        names = {f.name for f in fields(kind)} - {"inputs", "path", "line", "origin"}
        assert all(f"`{entry}`" in row for entry in names), name


def changed(change):
    """Return the file with its table of operations changed; the digest fits."""
    tensors, metadata = decode(DATA)
    table = json.loads(metadata["program"])
    change(table, tensors)
    return encode(tensors, {**metadata, "program": json.dumps(table)})


def at(place, **entries):
    return lambda table, tensors: table["operations"][place].update(entries)


def without_weight(table, tensors):
    del table["operations"][1]["weights"]["kernel"]
    del tensors["stem/conv/kernel"]


def spare_bits(table, tensors):
    tensors["body/words"] = tensors["body/words"] | np.uint32(4)


def tensor(name, value):
    return lambda table, tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at(3, operation="gelu"), "operation 3 is 'gelu', which this version"),
        (at(3, inputs=[3]), "operation 3, prelu of stem/bend, has the operand 3"),
        (at(3, inputs=[-1]), "the operand -1, which is not before it"),
        (at(3, inputs="2"), r"inputs of operation 3, prelu, is .*expected a list"),
        (at(3, slope=1), "does not have the entries"),
        (at(3, weights={}), "does not have the weights slope"),
        (at(3, weights={"slope": "stem/norm/scale"}), "is missing or taken"),
        (at(3, path=3), "has the path 3"),
        (at(6, window=[2]), "expected a list of 2"),
        (at(6, window=[2, True]), "expected a whole number"),
        (at(6, window=[2, 10**12]), "expected a whole number"),
        (at(6, window=[9, 9]), "do not fit each other: operation 6, max_pool, has a window"),
        (at(8, low="nan"), "expected a number"),
        (at(8, low=-(10**400)), "low of operation 8, clip, is -1000.* ...; expected a number"),
        (at(8, low=-1e39), "expected a number that float32 holds"),
        (at(3, path=["x"] * 10**6), r"path \['x', 'x'.{1,200} \.\.\.; expected a string"),
        (lambda table, _: table.update(operations=[{}] * (2**16 + 1)), "a list of 1 to 65536"),
        (at(19, shape=[2**30, 1, 8]), "expected equal sizes|too large"),
        (at(0, shape=[2**20, 2**20, 3]), "too large|do not fit each other"),
        (at(17, shape=[8]), "do not fit each other"),
        (lambda table, _: table.update(result=31.5), "its result is 31.5"),
        (lambda table, _: table.update(result=12), r"its result has the shape \(3, 3, 8\)"),
        (lambda table, _: table.update(operations=[]), "its program is not a list"),
        (lambda table, _: table.pop("result"), "not a table of operations and result"),
        (without_weight, "does not have the weights kernel"),
        (spare_bits, "operation 5 sets bits beyond its 34 input channels"),
        (tensor("more", np.float32([1])), "tensor 'more' belongs to no operation"),
        (tensor("stem/norm/shift", np.float32([np.inf] * 34)), "not finite"),
        (tensor("stem/norm/shift", np.zeros(34, np.uint32)), "has dtype uint32"),
        (tensor("stem/norm/shift", np.zeros(33, np.float32)), "a shift of"),
    ],
)
def test_a_bad_program_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        decode_program(changed(change))


def with_nine_axes(table, tensors):
    for shape in ([3, *[1] * 8], [3]):
        place = len(table["operations"])
        reshape = {"operation": "reshape", "path": "", "weights": {}, "shape": shape}
        table["operations"].append({**reshape, "inputs": [place - 1]})
        table["result"] = place


def test_a_program_beyond_the_limits_of_the_library():
    """JAX runs it."""
    data, images = changed(with_nine_axes), np.zeros((1, 6, 6, 3), np.uint8)
    if library.variants():
        with pytest.raises(UsageError, match=r"cannot run its program: .* 8 axes\. Use exact=True"):
            siman_jax.load(data)
    expected = siman_jax.load(DATA, exact=True)(images)
    np.testing.assert_array_equal(siman_jax.load(data, exact=True)(images), expected)


def test_notes_have_to_fit_the_program(tmp_path):
    path = tmp_path / "model.safetensors"
    write_program(path, PackedProgram(PROGRAM, {**NOTES, "mean": [0.1]}))
    with pytest.raises(UsageError, match="expected a list of 3 numbers"):
        siman_jax.load(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_odd_programs_are_refused_or_run(data):
    """Any entry of any operation may say anything."""
    tensors, metadata = decode(DATA)
    table = json.loads(metadata["program"])
    operation = data.draw(st.sampled_from(table["operations"]))
    operation[data.draw(st.sampled_from(sorted(operation)))] = data.draw(VALUES)
    odd = encode(tensors, {**metadata, "program": json.dumps(table)})
    try:
        found = decode_program(odd)
        parse_notes(found.notes, found.image_shape, found.num_classes)
    except UsageError:
        return
    assert len(found.program.shapes()) == len(PROGRAM.operations)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_damage_is_noticed(place, change):
    damaged = bytearray(DATA)
    damaged[place] ^= change
    with pytest.raises(UsageError):
        decode_program(bytes(damaged))
