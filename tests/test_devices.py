"""Eight virtual devices give the numbers of one; the traffic between them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharded_case import STEPS, fresh_state, make_case, make_step, rows

from siman_jax.configs import cifar10
from siman_jax.devices.communication import Traffic, communication, describe
from siman_jax.devices.mesh import (
    by_example,
    check_divides,
    largest_axis_sharded,
    make_mesh,
    make_replica_check,
    put_local_rows,
    replicated,
)
from siman_jax.errors import UsageError
from siman_jax.models.layers import BinaryDense
from siman_jax.models.leaves import binary_bits
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import TrainState, train_step


def trained(devices, shard_optimizer=False):
    """State and losses after five float64 steps on a number of devices."""
    mesh = make_mesh(devices)
    case = make_case()
    state = fresh_state(case, mesh)
    if shard_optimizer:
        sharding = largest_axis_sharded(mesh, state.opt_state)
        state = state.replace(opt_state=jax.device_put(state.opt_state, sharding))
    step = make_step(case, state, mesh)
    losses = []
    for number in range(STEPS):
        state, sums = step(state, *put_local_rows(mesh, rows(number, 0, 1)))
        losses.append(float(sums.loss))
    return state, losses


def assert_close(state, expected, tolerance):
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
    ):
        scale = max(float(jnp.max(jnp.abs(other))), 1e-3)
        np.testing.assert_allclose(
            np.asarray(leaf) / scale,
            np.asarray(other) / scale,
            rtol=0,
            atol=tolerance,
            err_msg=jax.tree_util.keystr(path),
        )


@pytest.fixture(scope="module")
def one_device():
    with jax.enable_x64(True):
        return trained(1)


@pytest.mark.slow
@pytest.mark.parametrize("shard_optimizer", [False, True])
def test_eight_devices_equal_one(one_device, x64, shard_optimizer):
    """For five steps with projection, bits, global batch norm and momentum."""
    expected, expected_losses = one_device
    state, losses = trained(8, shard_optimizer=shard_optimizer)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    assert_close(state, expected, 1e-10)
    assert make_replica_check(make_mesh(8))((state.params, state.batch_stats))
    bits = binary_bits(state.params, "half_half")
    for name, one in binary_bits(expected.params, "half_half").items():
        for shard in bits[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, one, err_msg=name)
    momentum = state.opt_state[1][0].trace["fc"]["kernel"]
    share = momentum.addressable_shards[0].data.size / momentum.size
    assert share == (1 / 8 if shard_optimizer else 1)


def test_a_replica_that_differs_is_seen():
    mesh = make_mesh(4)
    check = make_replica_check(mesh)

    def array(copies):
        copies = [jax.device_put(c, d) for c, d in zip(copies, mesh.devices, strict=True)]
        return jax.make_array_from_single_device_arrays((3,), replicated(mesh), copies)

    same = np.array([1.0, -2.0, 3.0], np.float32)
    assert check({"a": array([same] * 4)})
    assert not check({"a": array([same, same, same, np.nextafter(same, 9)])})
    assert not check({"a": array([same, same, same[::-1].copy(), same])})
    assert not check(array([same, -same, same, same]))
    assert check(array([same > 0] * 4))
    assert not check(array([same > 0, same > 1, same > 0, same > 0]))


@pytest.fixture(scope="module")
def programs():
    """Compiled float32 steps for eight devices, with shared and separate batch norm statistics."""

    def compiled(groups, shard_optimizer=False):
        mesh = make_mesh(8)
        case = make_case(jnp.float32, groups)
        state = fresh_state(case, mesh)
        if shard_optimizer:
            sharding = largest_axis_sharded(mesh, state.opt_state)
            state = state.replace(opt_state=jax.device_put(state.opt_state, sharding))
        batch = put_local_rows(mesh, rows(0, 0, 1, np.float32))
        return state, make_step(case, state, mesh).lower(state, *batch).compile().as_text()

    found = {groups: compiled(groups) for groups in (1, 4, 8)}
    return {**found, "sharded": compiled(8, shard_optimizer=True)}


@pytest.mark.slow
def test_devices_exchange_gradients_once_and_no_activations(programs):
    state, program = programs[8]  # every device has its own statistics
    traffic = communication(program)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    assert traffic.keys() == {"all-reduce"}
    assert traffic["all-reduce"].operations <= 4
    sums = 8  # loss, hits and counts
    least = 4 * parameters
    assert least <= traffic["all-reduce"].bytes <= least + 4 * (statistics + sums)


@pytest.mark.slow
def test_a_sharded_optimizer_gathers_the_updates_and_nothing_else(programs):
    """Projection, bits and the network are computed on whole parameters."""
    state, program = programs["sharded"]
    traffic = communication(program)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert traffic.keys() <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert 0 < traffic["all-gather"].bytes <= 4 * parameters
    assert traffic["all-gather"].operations <= len(jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 4])
def test_synchronised_batch_norm_exchanges_its_sums_only(programs, groups):
    """For statistics over all eight devices and over pairs."""
    state, program = programs[groups]
    traffic = communication(program)
    norms = sum(
        path[-1].key == "mean" for path, _ in jax.tree_util.tree_leaves_with_path(state.batch_stats)
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    assert traffic.keys() == {"all-reduce"}
    # For each norm: mean and variance forwards, and the sums of two gradients backwards.
    assert traffic["all-reduce"].operations <= 4 * norms + 4
    assert traffic["all-reduce"].bytes <= 4 * (parameters + (groups + 1) * statistics + 8)


def test_communication_is_read_from_the_program():
    program = """
      %a = f32[8]{0} all-gather(%p), dimensions={0}
      ROOT %b = (bf16[2,3]{1,0:T(8,128)}, f32[]) all-reduce-start(%x, %y), to_apply=%add
      %c = (bf16[2,3]{1,0}, f32[]) all-reduce-done(%b)
      %e = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), dimensions={0}
      %d = f32[4]{0} fusion(%all-reduce.1), calls=%all-reduce-like
    """
    traffic = communication(program)
    assert traffic == {"all-gather": Traffic(2, 32 + 128), "all-reduce": Traffic(1, 16)}
    assert "2 all-gather (0.00 MB), 1 all-reduce" in describe(traffic, 8)
    assert describe({}, 2) == "the 2 devices exchange nothing"


@pytest.mark.usefixtures("x64")
def test_groups_of_devices_have_their_own_statistics():
    x = jax.random.normal(jax.random.key(0), (12, 3, 3, 5), jnp.float64) * 3 + 1
    norm = BatchNorm(jnp.float64)
    variables = norm.init(jax.random.key(0), x, train=False)
    apply = partial(norm.apply, variables, train=True, mutable=["batch_stats"])
    parts = [apply(part) for part in jnp.split(x, 3)]
    grouped = BatchNorm(jnp.float64, groups=3)
    y, updated = grouped.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, jnp.concatenate([part for part, _ in parts]), atol=1e-12)
    for name in ("mean", "var"):
        mean = sum(stats["batch_stats"][name] for _, stats in parts) / 3
        np.testing.assert_allclose(updated["batch_stats"][name], mean, rtol=1e-6)
    assert not np.allclose(y, apply(x)[0], atol=1e-2)


class Small(nn.Module):
    """Two binary layers, with batch norm between them if `groups` is set."""

    groups: int = 0

    @nn.compact
    def __call__(self, x, *, train):
        x = BinaryDense(8, dtype=jnp.float64, name="one")(x.reshape(x.shape[0], -1))
        if self.groups:
            x = BatchNorm(jnp.float64, groups=self.groups)(x, train)
        return nn.Dense(10, dtype=jnp.float64)(BinaryDense(8, dtype=jnp.float64, name="two")(x))


@pytest.mark.parametrize("with_norm", [False, True])
def test_accumulated_gradients_are_those_of_the_large_batch(x64, with_norm):
    """Except batch norm, whose statistics are each part's, as if normalized in groups."""
    optimizer = build_optimizer(cifar10.get_config().optimizer, 0.1)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((24, 4, 4, 1)), rng.integers(-1, 10, 24).astype(np.int32)
    assert (labels < 0).any()
    parts = 4
    model = Small(groups=1 if with_norm else 0)
    variables = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64),
        model.init(jax.random.key(0), jnp.asarray(images), train=False),
    )
    state = TrainState(
        jnp.int32(0),
        variables["params"],
        variables.get("batch_stats", {}),
        optimizer.init(variables["params"]),
    )
    step = partial(train_step, optimizer=optimizer, schedules={"clip_percent": lambda _: 5.0})
    accumulated, sums = jax.jit(partial(step, model=model, accumulation=parts))(
        state, images, labels
    )
    # Part i is every fourth example, from number i on; this order puts the parts side by side.
    order = np.arange(24).reshape(6, parts).T.ravel()
    large = Small(groups=parts if with_norm else 0)
    whole, whole_sums = jax.jit(partial(step, model=large))(state, images[order], labels[order])
    assert_close(accumulated.params, whole.params, 1e-12)
    assert float(sums.loss) == pytest.approx(float(whole_sums.loss), rel=1e-12)
    assert int(sums.count) == int(whole_sums.count) == int((labels >= 0).sum())
    assert_close(accumulated.opt_state, whole.opt_state, 1e-12)


@pytest.mark.parametrize(("size", "sizes"), [(1, "8"), (12, "8 or 16"), (100, "96 or 104")])
def test_a_batch_that_does_not_fall_evenly_is_refused(size, sizes):
    with pytest.raises(UsageError, match=f"--config.batch_size is {size}, .* set it to {sizes}"):
        check_divides(make_mesh(8), size, "--config.batch_size")


def test_more_devices_than_there_are():
    with pytest.raises(
        UsageError, match="--devices is 9, and the number of devices in this run is 8"
    ):
        make_mesh(9)


def test_leaves_are_sharded_along_their_longest_even_axis():
    mesh = make_mesh(4)
    tree = {"a": jnp.zeros((3, 8, 16)), "b": jnp.zeros((3, 5)), "c": jnp.zeros(())}
    specs = jax.tree.map(lambda s: tuple(s.spec), largest_axis_sharded(mesh, tree))
    assert specs == {"a": (None, None, "data"), "b": (), "c": ()}
    assert tuple(by_example(mesh).spec) == ("data",)
