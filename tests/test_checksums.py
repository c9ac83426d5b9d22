"""Checksums of checkpoints: every changed bit is found, on any devices."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siman_jax.devices.mesh import AXIS, make_mesh
from siman_jax.errors import UsageError
from siman_jax.runs.checkpoint import CheckpointWriter, leaf_shape, restore_best, restore_latest
from siman_jax.runs.checksums import (
    array_checksum,
    checksums_of,
    leaf_checksums,
    parse_checksums,
    part_checksum,
)

DTYPES = (np.bool_, np.int16, np.float32, np.float64, np.complex128, jnp.bfloat16)


def factor(number):
    """SplitMix64, made odd."""
    x = number * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) | 1


def by_definition(array):
    data = array.tobytes() + bytes(-array.nbytes % 4)
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    terms = (w * factor(1 + i % 4096) * factor(4097 + i // 4096) for i, w in enumerate(words))
    return sum(terms) % 2**64


def example(shape, dtype):
    return (np.random.default_rng(0).standard_normal(shape) * 10).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (8, 16), (33, 41, 7)], ids=str)
def test_a_checksum_is_the_sum_of_its_definition(shape, dtype):
    array = example(shape, dtype)
    assert array_checksum(array) == by_definition(array)


def test_a_long_array_has_rows_of_words():
    array = example((3 * 4096 + 5,), np.float32)
    assert array_checksum(array) == by_definition(array)
    assert array_checksum(array[: 2 * 4096]) == by_definition(array[: 2 * 4096])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", range(3))
def test_parts_add_up_to_the_whole(axis, dtype):
    array = example((6, 41, 70), dtype)
    total = 0
    for start, stop in ((0, 1), (1, 5), (5, array.shape[axis])):
        index = (slice(None),) * axis + (slice(start, stop),) + (slice(None),) * (2 - axis)
        total += part_checksum(array[index], index, array.shape)
    assert total % 2**64 == array_checksum(array)


def test_a_checksum_does_not_depend_on_the_devices():
    arrays = {"a": example((8, 24), np.float32), "b": example((16,), np.bool_)}
    expected = {name: f"{array_checksum(array):016x}" for name, array in arrays.items()}
    for devices in (1, 2, 8):
        for spec in (PartitionSpec(), PartitionSpec(AXIS)):
            tree = jax.device_put(arrays, NamedSharding(make_mesh(devices), spec))
            assert leaf_checksums(tree) == expected


def test_every_pair_of_flipped_bits_changes_the_checksum():
    """Every single flipped bit changes it too: all sums differ."""
    array = example((33,), np.float32)
    bits = np.unpackbits(np.frombuffer(array.tobytes(), np.uint8))
    changed = np.tile(bits, (bits.size + 1, 1))
    changed[np.arange(bits.size), np.arange(bits.size)] ^= 1
    sums = {array_checksum(row) for row in np.packbits(changed, axis=1)}
    assert len(sums) == bits.size + 1


def test_stored_checksums_are_checked_themselves():
    stored = checksums_of({"w": jnp.arange(3.0)}, 12.5)
    text = json.dumps(stored.as_json())
    assert parse_checksums(json.loads(text)) == stored
    assert parse_checksums({}) is None
    for wrong in (
        text.replace("12.5", "13.5"),
        text.replace("float32", "float16"),
        text.replace("checksums", "checksumr"),
        "[]",
        "null",
    ):
        with pytest.raises(ValueError, match="checksums are damaged"):
            parse_checksums(json.loads(wrong))


STATE = {"w": jnp.asarray(example((70, 30), np.float32)), "bits": jnp.arange(64) % 3 == 0}


def at_step(step):
    return {"w": STATE["w"] + step, "bits": jnp.roll(STATE["bits"], step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    writer = CheckpointWriter(folder, keep=3, step=0)
    for step, top1 in ((1, 61.5), (2, 98.5)):
        writer.save(step, at_step(step), top1)
    writer.close()
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place // 8] ^= 1 << place % 8
    file.write_bytes(bytes(data))


def step_of(restored):
    """The step whose state equals this one bit for bit; an error if there is none."""
    for step in (1, 2):
        state = at_step(step)
        if all(np.array_equal(restored[name], state[name]) for name in state):
            return step
    raise AssertionError("restored what was never saved")


def places(size, count):
    """Numbers of bits spread over a file."""
    return [int(place) for place in np.linspace(0, 8 * size - 1, count)]


# Orbax leaves coroutines behind when a restore fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_flipped_bit_is_never_restored(copy, caplog):
    """In any file: the state is unchanged, or the previous checkpoint is used with a warning."""
    older = 0
    for file in sorted(path for path in (copy / "2").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for place in places(len(whole), min(12, 8 * len(whole))):
            flip(file, place)
            caplog.clear()
            found = step_of(restore_latest(copy, STATE))
            assert ("checkpoint 2 cannot be read" in caplog.text) == (found == 1)
            older += found == 1
            file.write_bytes(whole)
    assert older > 20
    assert step_of(restore_latest(copy, STATE)) == 2


def data_file(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_leaf_that_changed_is_named(copy, caplog):
    """A bit in the middle of the numbers, which only checksums detect."""
    file = data_file(copy / "2")
    flip(file, 4 * file.stat().st_size)
    assert step_of(restore_latest(copy, STATE)) == 1
    assert "the checksum of w is wrong" in caplog.text
    file = data_file(copy / "1")
    flip(file, 4 * file.stat().st_size)
    with pytest.raises(UsageError, match=r"none of the checkpoints .*the checksum of w is wrong"):
        restore_latest(copy, STATE)


def test_a_changed_accuracy_does_not_choose_the_best(copy, caplog):
    metrics = copy / "1" / "metrics" / "metrics"
    metrics.write_text(metrics.read_text().replace("61.5", "99.5"))
    assert step_of(restore_best(copy, STATE)) == 2
    assert "the accuracy of checkpoint 1 cannot be read" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", '{"top1": 98.0}'])
def test_another_one_does_not_pass_for_the_best_without_a_word(copy, caplog, text):
    (copy / "2" / "metrics" / "metrics").write_text(text)
    assert step_of(restore_best(copy, STATE)) == 1
    assert "the accuracy of checkpoint 2 cannot be read; it may be the best" in caplog.text


def test_a_changed_shape_is_damage_and_not_another_network(copy, caplog):
    tree = copy / "2" / "state" / "_METADATA"
    tree.write_text(tree.read_text().replace('"w"', '"v"').replace("'w'", "'v'"))
    assert step_of(restore_latest(copy, STATE)) == 1
    assert "checkpoint 2 cannot be read" in caplog.text
    assert leaf_shape(copy, "w") == (70, 30)
    assert leaf_shape(copy, "v") is None


def test_a_checkpoint_of_an_earlier_version_has_no_checksums_and_loads(copy, caplog):
    for step in (1, 2):
        file = copy / str(step) / "_CHECKPOINT_METADATA"
        fields = json.loads(file.read_text())
        file.write_text(json.dumps({**fields, "custom_metadata": {}}))
    assert step_of(restore_latest(copy, STATE)) == 2
    assert step_of(restore_best(copy, STATE)) == 2
    assert not caplog.text
