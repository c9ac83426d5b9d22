"""Programs: networks traced, simplified, run and proven."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from packable_networks import PACKABLE, REFUSED, PlainCnn, Refused
from parameters import first_quickly
from small_networks import DRAWS, trained, two_convolutions, with_random_bits

from siman_jax.models import NETWORKS, build_model
from siman_jax.native import library
from siman_jax.program import operations as op
from siman_jax.program.interpret import interpret
from siman_jax.program.native import native_network
from siman_jax.program.operations import Program, packed_bits, unpacked_bits
from siman_jax.program.passes import simplify, without_unused
from siman_jax.program.prove import Unequal, prove
from siman_jax.program.trace import Untraceable, trace, tracer
from siman_jax.rules import ACTIVATION_RULES, REAL, WEIGHT_RULES

# With so few images, compiling fast matters more than running fast.
FAST = {"xla_backend_optimization_level": 0}


def drawn(model, images):
    """Return variables as after training."""
    rng = np.random.default_rng(2)
    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    draws = {**DRAWS, "threshold": DRAWS["bias"], "theta": DRAWS["bias"]}
    plain = lambda rng, shape: rng.standard_normal(shape)  # noqa: E731
    return unflatten_dict(
        {
            path: jnp.asarray(draws.get(path[-1], plain)(rng, leaf.shape), leaf.dtype)
            for path, leaf in flatten_dict(shapes).items()
        }
    )


def images_of(size=8, channels=3, count=5):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((count, size, size, channels)), jnp.float32)


def check(model, variables, images):
    """Trace and prove; return the program. Both give the same logits."""
    program = trace(model, variables, images.shape[1:])
    proof = prove(program, model, variables, images)
    assert proof.near <= 2
    found = jax.jit(interpret, compiler_options=FAST)(program, images)
    if not proof.near:
        apply = jax.jit(partial(model.apply, train=False), compiler_options=FAST)
        expected = apply(variables, images)
        largest = np.abs(expected).max()
        # A bit next to its threshold may differ, since the other bits before it are not replaced.
        close = np.abs(found - expected).max(1) <= 1e-4 * largest
        assert close.mean() >= 0.6
    return program


@pytest.mark.parametrize("name", first_quickly(NETWORKS))
def test_a_network_of_the_project_computes_the_same(name):
    size = 8 if name.startswith("cifar") else 32
    model, variables, images = trained(name, jnp.float32, width=4, shape=(3, size, size, 3))
    program = check(model, with_random_bits(variables), images)
    kinds = [type(operation) for operation in program.operations]
    assert kinds.count(op.BinaryConv) >= 5
    # Scales and norms are joined: none follows another that nothing else uses.
    users = program.users()
    for operation in program.operations:
        if isinstance(operation, op.Affine) and operation.path:
            (place,) = operation.inputs
            before = program.operations[place]
            alone = len(users[place]) == 1
            assert not (isinstance(before, op.Affine) and before.path and alone)


def test_signs_are_shared_and_pools_are_of_whole_numbers():
    model, variables, images = trained(
        "cifar.resnet18_1w1a", jnp.float32, width=4, shape=(2, 8, 8, 3)
    )
    program = trace(model, variables, images.shape[1:])
    users = program.users()
    signs = [place for place, one in enumerate(program.operations) if isinstance(one, op.Signs)]
    assert sorted(len(users[place]) for place in signs)[-3:] == [2, 2, 2]
    model, variables, images = trained(
        "cifar.vgg_small_1w1a", jnp.float32, width=4, shape=(2, 8, 8, 3)
    )
    program = trace(model, variables, images.shape[1:])
    pools = [one for one in program.operations if isinstance(one, op.MaxPool)]
    assert len(pools) == 3
    for pool in pools:
        assert isinstance(program.operations[pool.inputs[0]], op.BinaryConv)


@pytest.mark.parametrize("rule", sorted(WEIGHT_RULES.keys() - {REAL}))
@pytest.mark.parametrize("stored", [False, True])
def test_weight_rules(rule, stored):
    """Also with stored bits, which the rule would not give."""
    model = two_convolutions(rule)
    images = images_of(channels=2)
    variables = drawn(model, images)
    program = check(model, with_random_bits(variables) if stored else variables, images)
    learned = WEIGHT_RULES[rule].alpha or WEIGHT_RULES[rule].scaled
    products = [place for place, one in enumerate(program.operations) if type(one) is op.BinaryConv]
    assert len(products) == 2
    assert bool(learned) or all(program.operations[place].origin for place in products)


@pytest.mark.parametrize("name", first_quickly(NETWORKS))
def test_every_network_packs_scaled_and_rotated_kernels(name):
    size = 32 if name.startswith("cifar") else 64
    for weight_rule in ("xnor_net", "rbnn"):
        model = build_model(name, 7, width=8, weight_rule=weight_rule, activation_rule="siman")
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        program = jax.eval_shape(tracer(model, variables, (size, size, 3)), variables)
        assert program.shapes()[program.result] == (7,)
        kinds = [type(operation) for operation in program.operations]
        assert (
            kinds.count(op.BinaryConv) == kinds.count(op.Signs) + name.count("cifar.resnet18") * 3
        )


def test_signs_of_zeros_and_of_equal_numbers_are_plus_one():
    images = jnp.float32([0.0, -0.0, -1e-30]).reshape(1, 1, 1, 3)
    about_zero = op.Signs(inputs=(0,), threshold=np.zeros(3, np.float32))
    program = Program((op.Images(shape=(1, 1, 3)), about_zero), 1)
    assert interpret(program, images).ravel().tolist() == [1, 1, -1]
    about_mean = Program((op.Images(shape=(2, 2, 3)), op.Signs(inputs=(0,))), 1)
    assert (interpret(about_mean, jnp.full((1, 2, 2, 3), 0.25)) == 1).all()


@pytest.mark.parametrize("rule", sorted(ACTIVATION_RULES))
@pytest.mark.parametrize("weights", ["dorefa", REAL])
def test_activation_rules(rule, weights):
    model = PlainCnn(weight_rule=weights, activation_rule=rule)
    images = images_of()
    check(model, drawn(model, images), images)


@pytest.mark.parametrize("name", PACKABLE)
def test_networks_of_one_s_own(name):
    model = PACKABLE[name]()
    images = images_of()
    program = check(model, drawn(model, images), images)
    assert program.image_shape == (8, 8, 3)
    if library.variants():
        found = native_network(program)(np.asarray(images))
        expected = jax.jit(interpret, compiler_options=FAST)(program, images)
        close = np.abs(found - expected).max(1) <= 1e-4 * np.abs(expected).max()
        assert close.mean() >= 0.6  # rounding may change a bit
    lines = {one.line.partition(":")[0] for one in program.operations[1:]}
    assert lines == {"packable_networks.py"}


def test_operations_know_their_modules():
    model, images = PlainCnn(), images_of()
    program = trace(model, drawn(model, images), images.shape[1:])
    paths = {type(one): one.path for one in program.operations if one.weights()}
    assert paths[op.Conv] == "entry"
    assert paths[op.BinaryConv] == "middle"
    assert paths[op.PReLU] == "bend"
    assert paths[op.BinaryDense] == "classes"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused(name):
    between, message = REFUSED[name]
    model, images = Refused(between), images_of()
    variables = drawn(model, images)
    if message is None:
        program = trace(model, variables, images.shape[1:])
        with pytest.raises(Unequal):
            prove(program, model, variables, images)
        return
    with pytest.raises(Untraceable, match=message) as error:
        trace(model, variables, images.shape[1:])
    assert "packable_networks.py:" in str(error.value)
    assert "Training and evaluation work as it is." in str(error.value)


def test_a_network_that_takes_no_such_images_is_refused():
    model, images = PlainCnn(), images_of()
    variables = drawn(model, images)
    with pytest.raises(Untraceable, match="PlainCnn cannot be traced as model"):
        trace(model, variables, (11, 11, 3))


def changed(program, kind, change):
    """Return the program with the first operation of a kind changed."""
    place = next(i for i, one in enumerate(program.operations) if isinstance(one, kind))
    operations = list(program.operations)
    operations[place] = change(operations[place])
    return Program(tuple(operations), program.result)


def with_weight(name, function):
    def change(operation):
        array = np.array(getattr(operation, name))
        return type(operation)(**{**vars(operation), name: function(array)})

    return change


def bit_flipped(words):
    words[0, 0, 0, 0] ^= 1
    return words


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (op.BinaryConv, with_weight("words", bit_flipped), "middle|its max_pool"),
        (
            op.Conv,
            with_weight("kernel", lambda x: x * np.float32(1.0001)),
            "entry cannot be packed",
        ),
        (op.PReLU, with_weight("slope", lambda x: x + np.float32(0.01)), "bend cannot be packed"),
        (
            op.Signs,
            with_weight("threshold", lambda x: x + np.float32(0.1)),
            "its signs would differ from evaluation in .* numbers",
        ),
        (op.Dense, with_weight("kernel", lambda x: x * np.float32(np.nan)), "not finite"),
    ],
)
def test_a_program_that_is_not_the_network_is_refused(kind, change, message):
    others = {op.Dense: "separable", op.Signs: "learned threshold"}
    model, images = PACKABLE[others.get(kind, "plain CNN")](), images_of()
    variables = drawn(model, images)
    program = trace(model, variables, images.shape[1:])
    with pytest.raises(Unequal, match=message):
        prove(changed(program, kind, change), model, variables, images)


def test_packed_bits_are_unpacked():
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, 37, 4)).astype(bool)
    words = packed_bits(bits)
    assert words.shape == (2, 3, 2, 4)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(unpacked_bits(words, 37), bits)


def zeros(dtype):
    return np.zeros((1, 1, 2, 3), dtype)


def by_hand(*operations):
    return Program((op.Images(shape=(4, 4, 2)), *operations), len(operations))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (by_hand(op.Tanh(inputs=(1,))), "the operand 1, which is not before it"),
        (by_hand(op.Add(inputs=(0,))), "1 operands"),
        (by_hand(op.Images(shape=(1, 1, 1))), "elsewhere than at the start"),
        (by_hand(op.Reshape(inputs=(0,), shape=(5, 5))), r"a shape \(5, 5\) for \(4, 4, 2\)"),
        (
            by_hand(op.Slice(inputs=(0,), starts=(0, 0, 0), stops=(5, 4, 2), strides=(1, 1, 1))),
            "slice",
        ),
        (by_hand(op.Affine(inputs=(0,), scale=np.ones(3, np.float32))), "a scale of"),
        (by_hand(op.MaxPool(inputs=(0,), window=(5, 5))), "larger than the padded image"),
        (by_hand(op.MaxPool(inputs=(0,), window=(2, 2), padding=((2, 0), (0, 0)))), "padding"),
        (
            by_hand(op.BinaryConv(inputs=(0,), words=np.zeros((1, 1, 2, 3), np.uint32))),
            "2 words for 2",
        ),
        (
            by_hand(op.Conv(inputs=(0,), kernel=np.zeros((1, 1, 2, 3), np.float32), groups=2)),
            "2 groups",
        ),
        (by_hand(op.Sum(inputs=(0,), axes=(1, 1))), "axes"),
        (Program((op.Images(shape=(4, 4, 2)),), 1), "its result is operation 1 of 1"),
    ],
)
def test_programs_that_do_not_fit_are_refused(program, message):
    with pytest.raises(ValueError, match=message):
        program.shapes()


def test_simplifying_keeps_what_a_hand_made_program_computes():
    """Negative scales before a max pool, shared signs, scales that others need as well."""
    rng = np.random.default_rng(3)

    def floats(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    words = packed_bits(rng.integers(0, 2, (3, 3, 2, 5)).astype(bool))
    zero = np.zeros(2, np.float32)
    program = by_hand(
        op.Affine(inputs=(0,), shift=floats(2)),
        op.Signs(inputs=(1,), threshold=zero),
        op.BinaryConv(inputs=(2,), words=words),
        op.Affine(inputs=(3,), scale=floats(5)),
        op.MaxPool(inputs=(4,), window=(2, 2)),
        op.Affine(inputs=(5,), scale=floats(5), shift=floats(5)),
        op.Signs(inputs=(1,), threshold=zero),
        op.BinaryConv(inputs=(7,), words=words),
        op.Affine(inputs=(8,), scale=floats(5)),
        op.Affine(inputs=(9,), shift=floats(5)),
        op.Broadcast(inputs=(6,), shape=(2, 2, 5)),
        op.Multiply(inputs=(9, 11)),
        op.Add(inputs=(12, 10)),
    )
    simpler = jax.tree.map(np.asarray, simplify(program))
    kinds = [type(one) for one in simpler.operations]
    assert kinds.count(op.Signs) == 1
    assert op.Broadcast not in kinds
    assert len(kinds) < len(program.operations)
    pool = next(one for one in simpler.operations if isinstance(one, op.MaxPool))
    assert isinstance(simpler.operations[pool.inputs[0]], op.BinaryConv)
    images = images_of(4, 2)
    run = jax.jit(interpret, compiler_options=FAST)
    np.testing.assert_allclose(run(simpler, images), run(program, images), rtol=1e-5, atol=1e-5)


def test_unused_operations_are_left_out():
    program = by_hand(op.Tanh(inputs=(0,)), op.Sigmoid(inputs=(0,)), op.Add(inputs=(0, 2)))
    kept = without_unused(program)
    assert [type(one) for one in kept.operations] == [op.Images, op.Sigmoid, op.Add]
    assert kept.result == 2
