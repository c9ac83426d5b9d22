"""Tests of the model file: nothing is lost, bytes are equal, and bad files are refused."""

import contextlib
import hashlib
import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_example import ARGUMENTS, packed_network

from siman_jax.errors import UsageError
from siman_jax.models import build_model
from siman_jax.packed.file import (
    PackedNetwork,
    decode_network,
    encode_network,
    read_network,
    write_network,
)
from siman_jax.packed.network import pack_unchecked, packed_twin
from siman_jax.packed.safetensors import decode, encode


@cache
def example():
    return packed_network()


@cache
def example_bytes():
    return encode_network(example())


@pytest.fixture
def packed():
    return example()


@pytest.fixture
def data():
    return example_bytes()


def assert_same(found, expected):
    found, expected = flatten_dict(found), flatten_dict(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(found[path], leaf, err_msg=str(path))


@pytest.mark.parametrize("name", ["cifar.vgg_small_1w1a", "imagenet.resnet18_1w1a"])
def test_reading_gives_back_what_was_written(name, tmp_path):
    packed = packed_network(name, size=32)
    write_network(tmp_path / "model.safetensors", packed)
    found = read_network(tmp_path / "model.safetensors")
    assert_same(found.variables, packed.variables)
    for attribute in ("network", "arguments", "image_shape", "notes"):
        assert getattr(found, attribute) == getattr(packed, attribute)
    images = jax.random.normal(jax.random.key(1), (2, *packed.image_shape))
    apply = jax.jit(partial(packed_twin(found.model()).apply, train=False))
    np.testing.assert_array_equal(apply(found.variables, images), apply(packed.variables, images))


def test_float16_rounds_what_is_not_binary(packed, data):
    half = encode_network(packed, np.float16)
    found = decode_network(half).variables
    rounded = jax.tree.map(
        lambda x: x.astype(jnp.float16).astype(x.dtype) if x.dtype == jnp.float32 else x,
        packed.variables,
    )
    assert_same(found, rounded)
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(found) if leaf.dtype == jnp.float32)
    assert len(data) - len(half) == pytest.approx(floats / 2, abs=500)


def test_equal_networks_give_equal_bytes(packed, data):
    """The order in which tensors are given does not matter."""
    backwards = {
        collection: dict(reversed(tree.items())) for collection, tree in packed.variables.items()
    }
    arguments = dict(reversed(ARGUMENTS.items()))
    again = PackedNetwork(packed.network, arguments, packed.image_shape, backwards, packed.notes)
    assert encode_network(again) == data


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 4.22e6), (np.float16, 2.80e6)])
def test_size_of_resnet18(dtype, most):
    model = build_model("imagenet.resnet18_1w1a", 1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    shapes = jax.eval_shape(partial(pack_unchecked, model), variables)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    arguments = {**ARGUMENTS, "num_classes": 1000, "width": 64}
    packed = PackedNetwork("imagenet.resnet18_1w1a", arguments, (224, 224, 3), zeros)
    assert len(encode_network(packed, dtype)) < most
    binary = [leaf for path, leaf in flatten_dict(zeros["params"]).items() if path[-1] == "words"]
    assert sum(leaf.nbytes for leaf in binary) * 32 == 4 * 10_985_472


def test_values_that_are_not_finite_are_not_written(packed):
    variables = {**packed.variables}
    variables["params"] = {**variables["params"], "bn0": {"gain": jnp.full(12, 1e6)}}
    large = PackedNetwork(packed.network, ARGUMENTS, packed.image_shape, variables)
    with pytest.raises(UsageError, match=r"'?bn0/gain'? holds a value that is not finite"):
        encode_network(large, np.float16)


def changed(data, *, metadata=None, tensors=None):
    """Return the file with metadata or tensors replaced, or left out if None."""
    old_tensors, old_metadata = decode(data)
    new = [{**old_metadata, **(metadata or {})}, {**old_tensors, **(tensors or {})}]
    kept = [{name: value for name, value in table.items() if value is not None} for table in new]
    return encode(kept[1], kept[0])


WRONG = {
    "version": ({"metadata": {"version": "2"}}, r"version is '2'; expected '1'"),
    "format": ({"metadata": {"format": None}}, "format is None"),
    "polarity": ({"metadata": {"polarity": "bit 0 is"}}, "polarity"),
    "notes missing": ({"metadata": {"notes": None}}, "metadata lack notes"),
    "notes no JSON": ({"metadata": {"notes": "{"}}, "notes cannot be read"),
    "deep JSON": ({"metadata": {"notes": "[" * 100_000}}, "notes cannot be read"),
    "network": ({"metadata": {"network": "cifar.vgg"}}, "unknown model 'cifar.vgg'"),
    "width": (
        {"metadata": {"arguments": json.dumps({**ARGUMENTS, "width": 10**12})}},
        "width holds 1000000000000",
    ),
    "rule": (
        {"metadata": {"arguments": json.dumps({**ARGUMENTS, "weight_rule": "sign"})}},
        "unknown weight rule 'sign'",
    ),
    "another width": (
        {"metadata": {"arguments": json.dumps({**ARGUMENTS, "width": 16})}},
        r"has shape .*; expected",
    ),
    "image": ({"metadata": {"image_shape": "[2, 2, 3]"}}, r"does not take images|shape"),
    "missing": ({"tensors": {"conv1/words": None}}, "'conv1/words' is missing"),
    "extra": ({"tensors": {"conv9/words": np.uint32([1])}}, "'conv9/words' is not of this network"),
    "shape": ({"tensors": {"fc/bias": np.zeros(4, np.float32)}}, r"'fc/bias' has shape \(4,\)"),
    "unknown": ({"metadata": {"sha257": "0"}}, "metadata hold 'sha257', which is unknown"),
    "dtype": ({"tensors": {"fc/bias": np.zeros(3, np.uint32)}}, "'fc/bias' has dtype uint32"),
    "finite": (
        {"tensors": {"fc/bias": np.float32([0, np.nan, 0])}},
        "'fc/bias' holds a value that is not finite",
    ),
    "spare bits": (
        {"tensors": {"conv1/words": np.full((3, 3, 1, 12), 2**31, np.uint32)}},
        "'conv1/words' sets bits beyond its 12 input channels",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(data, case):
    change, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        decode_network(changed(data, **change))


def test_one_flipped_bit_anywhere_is_refused(data):
    """Change each bit of the header, and bits across all numbers."""
    start = 8 + int.from_bytes(data[:8], "little")
    places = [*range(8 * start), *range(8 * start, 8 * len(data), 8 * 97 + 3)]
    for place in places:
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(UsageError):
            decode_network(bytes(broken))
    broken = bytearray(data)
    broken[-1] ^= 1
    with pytest.raises(UsageError, match=r"its digest .* does not match its contents"):
        decode_network(bytes(broken))


def without_digest(data):
    """Read a file as written by earlier versions."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    del header["__metadata__"]["sha256"]
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


@pytest.mark.parametrize("digest", ["", "\ud800", "0" * 63, "\u0661" * 64, "Z" * 64])
def test_a_digest_is_64_digits(data, digest):
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["sha256"] = digest
    text = json.dumps(header).encode()
    with pytest.raises(UsageError, match=r"its digest .* is not 64 hexadecimal digits"):
        decode_network(len(text).to_bytes(8, "little") + text + data[end:])


def test_a_file_without_a_digest_loads(packed, data):
    assert_same(decode_network(without_digest(data)).variables, packed.variables)


def test_the_digest_is_the_whole_files_with_zeros_in_its_place(data):
    """Also if a string before it holds the same zeros."""
    text = encode({"a": np.float32([1])}, {"notes": f'"sha256":"{"0" * 64}"'})
    for file in (data, text):
        end = 8 + int.from_bytes(file[:8], "little")
        digest = json.loads(file[8:end])["__metadata__"]["sha256"]
        zeros = file.replace(digest.encode(), b"0" * 64)
        assert hashlib.sha256(zeros).hexdigest() == digest


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fc/bias", "I32"), ("fc/bias", "U32"), ("conv1/words", "F32"), ("conv1/words", "I32")],
)
def test_numbers_of_another_kind_are_refused(data, name, dtype):
    """Change a tensor's dtype to one of the same size, in a file without a digest."""
    file = without_digest(data)
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    with pytest.raises(UsageError, match=f"'{name}' has dtype"):
        decode_network(len(text).to_bytes(8, "little") + text + file[end:])


def test_a_folder_is_not_a_model_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        read_network(tmp_path)


def refused_or_read(data):
    """Read it; only errors of bad input are allowed."""
    with contextlib.suppress(UsageError):
        decode_network(data)


def test_every_truncation_is_refused(data):
    for length in {*range(0, len(data), 997), *range(20), len(data) - 1}:
        with pytest.raises(UsageError):
            decode_network(data[:length])
    with pytest.raises(UsageError, match="1 bytes follow"):
        decode_network(data + b"\0")


fuzz = settings(max_examples=60, deadline=None, derandomize=True)


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes(garbage):
    refused_or_read(garbage)
    refused_or_read(len(garbage).to_bytes(8, "little") + garbage)


@fuzz
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_of_the_header(changes):
    broken = bytearray(example_bytes())
    for position, byte in changes:
        broken[position] = byte
    refused_or_read(bytes(broken))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@fuzz
@given(st.data())
def test_other_values_in_the_header(draws):
    file = example_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    name = draws.draw(st.sampled_from(sorted(header)))
    place = draws.draw(st.sampled_from(sorted(header[name])))
    header[name][place] = draws.draw(values)
    text = json.dumps(header).encode()
    refused_or_read(len(text).to_bytes(8, "little") + text + file[end:])
