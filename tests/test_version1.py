"""Version 1 of the model file: files of before programs predict the same, and bad ones are refused.

`version1/` holds such files, and the logits that they gave when they were written.
"""

import contextlib
import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import siman_jax
from siman_jax.errors import UsageError
from siman_jax.packed.program_file import decode_program, encode_program, read_program
from siman_jax.packed.safetensors import decode, encode

FOLDER = Path(__file__).parent / "version1"
LOGITS = json.loads((FOLDER / "logits.json").read_text())
ARGUMENTS = {
    "num_classes": 3,
    "width": 4,
    "weight_rule": "half_half",
    "activation_rule": "siman",
}


@cache
def example_bytes():
    return (FOLDER / "vgg_small.safetensors").read_bytes()


@pytest.fixture
def data():
    return example_bytes()


@pytest.mark.parametrize("case", LOGITS)
def test_files_of_before_predict_the_same(case):
    model = siman_jax.load(FOLDER / f"{case}.safetensors", exact=True)
    size = model.network.image_shape[0]
    images = np.uint8(np.arange(9 * size * size) ** 2 % 251).reshape(3, size, size, 3)
    expected = np.float32(LOGITS[case])
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-5)
    # Written again, it is a file of today that gives the very same.
    again = siman_jax.load(encode_program(model.network), exact=True)
    np.testing.assert_array_equal(again(images), model(images))
    np.testing.assert_allclose(
        siman_jax.load(encode_program(model.network))(images), expected, rtol=1e-4, atol=1e-4
    )
    assert model.predict(images).names == ["abé"[index] for index in expected.argmax(1)]


def test_a_module_s_path_is_that_of_its_tensors(data):
    tensors, _ = decode(data)
    words = {
        f"{one.path}/words": one.words
        for one in decode_program(data).program.operations
        if hasattr(one, "words")
    }
    assert words.keys() == {name for name in tensors if name.endswith("words")}
    for name, array in words.items():
        np.testing.assert_array_equal(array, tensors[name])


def changed(data, *, metadata=None, tensors=None):
    """Return the file with metadata or tensors replaced, or left out if None."""
    old_tensors, old_metadata = decode(data)
    new = [{**old_metadata, **(metadata or {})}, {**old_tensors, **(tensors or {})}]
    kept = [{name: value for name, value in table.items() if value is not None} for table in new]
    return encode(kept[1], kept[0])


WRONG = {
    "version": ({"metadata": {"version": "3"}}, r"version is '3'; expected '2'"),
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
        {"tensors": {"conv1/words": np.full((3, 3, 1, 4), 2**31, np.uint32)}},
        "'conv1/words' sets bits beyond its 4 input channels",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(data, case):
    change, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        decode_program(changed(data, **change))


def test_one_flipped_bit_anywhere_is_refused(data):
    """Change each bit of the header, and bits across all numbers."""
    start = 8 + int.from_bytes(data[:8], "little")
    places = [*range(8 * start), *range(8 * start, 8 * len(data), 8 * 97 + 3)]
    for place in places:
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(UsageError):
            decode_program(bytes(broken))
    broken = bytearray(data)
    broken[-1] ^= 1
    with pytest.raises(UsageError, match=r"its digest .* does not match its contents"):
        decode_program(bytes(broken))


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
        decode_program(len(text).to_bytes(8, "little") + text + data[end:])


def test_a_file_without_a_digest_loads(data):
    found, expected = (decode_program(file) for file in (without_digest(data), data))
    assert encode_program(found) == encode_program(expected)


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
        decode_program(len(text).to_bytes(8, "little") + text + file[end:])


def test_a_folder_is_not_a_model_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        read_program(tmp_path)


def refused_or_read(data):
    """Read it; only errors of bad input are allowed."""
    with contextlib.suppress(UsageError):
        decode_program(data)


def test_every_truncation_is_refused(data):
    for length in {*range(0, len(data), 997), *range(20), len(data) - 1}:
        with pytest.raises(UsageError):
            decode_program(data[:length])
    with pytest.raises(UsageError, match="1 bytes follow"):
        decode_program(data + b"\0")


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
