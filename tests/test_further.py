"""Colour jitter, lighting, cutout, mixup and cutmix against NumPy, and the loss of mixed labels."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image, ImageEnhance

from siman_jax.configs import cifar10, digits
from siman_jax.data import arrays
from siman_jax.data.colors import color_jitter, lighting
from siman_jax.data.dataset import Split
from siman_jax.data.feed import Batch, MixedLabels
from siman_jax.data.further import further_augmentation
from siman_jax.data.mixing import cutmix, cutout, mixup
from siman_jax.data.resident import ResidentFeed
from siman_jax.devices.mesh import by_example, make_mesh
from siman_jax.errors import UsageError
from siman_jax.training.config_check import check_config
from siman_jax.training.distillation import Distillation
from siman_jax.training.metrics import cross_entropy, score, smoothed_cross_entropy
from siman_jax.training.seeds_together import over_seeds
from siman_jax.training.step import create_state, train_step

N, SIZE = 6, 8
KEY = jax.random.key(3)


def pictures(channels=3, n=N, low=0, high=256):
    rng = np.random.default_rng(0)
    return rng.integers(low, high, (n, SIZE, SIZE, channels), np.uint8)


def luma(x):
    return x @ np.array([0.299, 0.587, 0.114]) if x.shape[-1] == 3 else x[..., 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", ["bcs", "scb", "csb"])
def test_colour_jitter_is_the_same_in_any_order(channels, order):
    images = pictures(channels)
    found = np.asarray(color_jitter(KEY, jnp.asarray(images), 0.9))
    uniform = jax.random.uniform(KEY, (3, N, 1, 1, 1), jnp.float32, -1, 1)
    factors = 1 + 0.9 * np.float64(uniform[..., 0, 0, 0])
    for i, image in enumerate(images):
        x = np.float64(image)
        for change in order:
            f = factors["bcs".index(change), i]
            if change == "b":
                x = f * x
            elif change == "c":
                x = f * x + (1 - f) * luma(x).mean()
            else:
                x = f * x + (1 - f) * luma(x)[..., None]
        np.testing.assert_allclose(found[i], x.clip(0, 255), rtol=1e-4, atol=1e-3)
    assert found.dtype == np.float32
    assert found.max() > 250


def test_colour_jitter_is_that_of_pillow():
    """Pillow rounds after each change; levels are such that none is cut."""
    images = pictures(low=100, high=150)
    found = color_jitter(KEY, jnp.asarray(images), 0.3)
    factors = 1 + 0.3 * jax.random.uniform(KEY, (3, N, 1, 1, 1), jnp.float32, -1, 1)
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
        for kind, factor in zip(kinds, factors[:, i, 0, 0, 0].tolist(), strict=True):
            picture = kind(picture).enhance(factor)
        assert np.abs(np.asarray(picture, np.float32) - found[i]).max() < 4


def test_lighting_shifts_by_the_principal_components():
    images = np.zeros((20_000, 1, 2, 3), np.uint8)
    shifts = np.asarray(lighting(KEY, jnp.asarray(images), 0.1))
    np.testing.assert_array_equal(shifts[:, 0, 0], shifts[:, 0, 1])  # one for an image
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    expected = 25.5**2 * vectors @ np.diag(values**2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts[:, 0, 0].T), expected, rtol=0.04)
    images = pictures()
    lit = np.asarray(lighting(KEY, jnp.asarray(images), 0.1)) - images
    np.testing.assert_allclose(lit, np.broadcast_to(lit[:, :1, :1], lit.shape), atol=1e-4)


@pytest.mark.parametrize("side", [1, 3, 4, 8])
def test_cutout_fills_a_square_around_a_pixel(side):
    images = pictures(high=200)
    centres = np.asarray(jax.random.randint(KEY, (N, 2), 0, SIZE))
    expected = np.float32(images)
    for i, (down, across) in enumerate(centres):
        for y in range(down - side // 2, down - side // 2 + side):
            for x in range(across - side // 2, across - side // 2 + side):
                if 0 <= y < SIZE and 0 <= x < SIZE:
                    expected[i, y, x] = 250, 251, 252
    found = np.asarray(cutout(KEY, jnp.asarray(images), side, (250.0, 251.0, 252.0)))
    np.testing.assert_array_equal(found, expected)
    assert (found[..., 0] == 250).any(axis=(1, 2)).all()


LABELS = np.array([4, 1, 0, -1, 2, 3], np.int32)
OTHERS = np.array([3, 4, 1, 0, -1, 2], np.int32)
STAYS = np.array([0, 0, 0, 1, 1, 0], bool)  # one of the two does not count


@pytest.mark.parametrize("alpha", [0.05, 1.0, 20.0])
def test_mixup_is_the_weighted_mean_with_the_neighbour(alpha):
    images = pictures()
    batch = mixup(KEY, jnp.asarray(images), jnp.asarray(LABELS), alpha)
    share = float(batch.labels.share[0])
    assert 0 <= share <= 1
    np.testing.assert_allclose(batch.labels.share, np.where(STAYS, 1, share), rtol=1e-6)
    np.testing.assert_array_equal(batch.labels.own, LABELS)
    np.testing.assert_array_equal(batch.labels.other, OTHERS)
    for i in range(N):
        other = images[i - 1].astype(float)
        expected = images[i] if STAYS[i] else share * images[i] + (1 - share) * other
        np.testing.assert_allclose(batch.images[i], expected, rtol=1e-5, atol=1e-4)


def test_shares_are_those_of_the_beta_distribution():
    keys = jax.random.split(KEY, 4000)
    images, labels = jnp.zeros((2, 1, 1, 1)), jnp.zeros(2, jnp.int32)
    for alpha in (0.05, 0.4, 4.0):
        mix = partial(mixup, images=images, labels=labels, alpha=alpha)
        shares = np.asarray(jax.vmap(lambda key, mix=mix: mix(key).labels.share[0])(keys))
        assert np.isfinite(shares).all()
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_pastes_a_rectangle_of_the_neighbour(seed):
    key = jax.random.key(seed)
    images = pictures()
    batch = cutmix(key, jnp.asarray(images), jnp.asarray(LABELS), 1.0)
    first, second = jax.random.split(key)
    beta = float(jax.random.beta(first, 1.0, 1.0, dtype=jnp.float32))
    (down, across) = np.asarray(jax.random.randint(second, (1, 2), 0, SIZE))[0]
    side = int(np.float32(SIZE) * np.sqrt(np.float32(1) - np.float32(beta)))
    inside = np.zeros((SIZE, SIZE), bool)
    top, left = down - side // 2, across - side // 2
    inside[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
    for i in range(N):
        expected = images[i].copy()
        if not STAYS[i]:
            expected[inside] = images[i - 1][inside]
        np.testing.assert_array_equal(batch.images[i], expected)
    share = 1 - inside.mean()
    np.testing.assert_allclose(batch.labels.share, np.where(STAYS, 1, share), rtol=1e-6)


def mixed_labels(share=0.3):
    shares = np.where(STAYS, 1, share).astype(np.float32)
    return MixedLabels(jnp.asarray(LABELS), jnp.asarray(OTHERS), jnp.asarray(shares))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_loss_of_mixed_labels(smoothing, share):
    """Cross-entropy to the mixed target, smoothed; hits are those of the larger share."""
    logits = np.random.default_rng(0).standard_normal((N, 5)).astype(np.float32)
    loss = partial(smoothed_cross_entropy, share=smoothing) if smoothing else cross_entropy
    labels = mixed_labels(share)
    value, gradient = jax.value_and_grad(lambda x: score(x, labels, loss).loss)(jnp.asarray(logits))
    targets = np.zeros((N, 5))
    for i in range(N):
        own = 1.0 if STAYS[i] else share
        targets[i, LABELS[i]] += own
        targets[i, OTHERS[i]] += 1 - own
    targets = (1 - smoothing) * targets + smoothing / 5
    targets[3] = 0  # does not count
    p = softmax(logits)
    assert float(value) == pytest.approx(-np.sum(targets * np.log(p)), rel=1e-5)
    np.testing.assert_allclose(gradient, targets.sum(1, keepdims=True) * p - targets, atol=1e-6)
    sums = score(jnp.asarray(logits), labels, loss)
    leading = np.where(STAYS | (share >= 0.5), LABELS, OTHERS)
    hits = sum(logits[i].argmax() == leading[i] for i in range(N) if i != 3)
    assert (int(sums.count), int(sums.top1)) == (5, hits)


class Dense(nn.Module):
    """Without batch norm, so that parts of a batch give what the whole batch does."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(5)(x.mean((1, 2)))


def test_a_taught_step_on_mixed_labels_by_parts_seeds_and_devices():
    optimizer, images = optax.sgd(0.5), jnp.float32(pictures()) / 255
    state = create_state(Dense(), optimizer, jax.random.key(0), (SIZE, SIZE, 3))
    teacher = create_state(Dense(), optimizer, jax.random.key(1), (SIZE, SIZE, 3)).variables()
    step = partial(
        train_step,
        model=Dense(),
        optimizer=optimizer,
        schedules={},
        distillation=Distillation(Dense(), 2.0, 0.6),
    )
    labels = mixed_labels()
    whole = jax.jit(step)(state, images, labels, teacher)[0].params["Dense_0"]
    x = np.float64(images).mean((1, 2))
    logits = np.asarray(Dense().apply(state.variables(), images, train=False), np.float64)
    answers = np.asarray(Dense().apply(teacher, images, train=False), np.float64)
    targets = np.eye(5)[LABELS] * np.where(STAYS, 1, 0.3)[:, None]
    targets += np.eye(5)[OTHERS] * np.where(STAYS, 0, 0.7)[:, None]
    error = 0.4 * (softmax(logits) - targets)
    error += 0.6 * 2 * (softmax(logits / 2) - softmax(answers / 2))
    error[3] = 0
    expected = np.asarray(state.params["Dense_0"]["kernel"]) - 0.5 * x.T @ error / 5
    np.testing.assert_allclose(whole["kernel"], expected, rtol=1e-5, atol=1e-6)

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state).replace(step=state.step)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf[::-1], leaf]), (images, labels))
    spread = jax.device_put((images, labels), by_example(make_mesh(2)))
    for other in (
        jax.jit(partial(step, accumulation=2))(state, images, labels, teacher)[0].params,
        jax.tree.map(
            lambda leaf: leaf[1],
            jax.jit(over_seeds(step, stacked, 2))(stacked, *both, teacher)[0].params,
        ),
        jax.jit(step)(state, *spread, teacher)[0].params,
    ):
        for name, leaf in other["Dense_0"].items():
            np.testing.assert_allclose(leaf, whole[name], rtol=1e-5, atol=1e-6)


def all_on(**fields):
    data = cifar10.get_config().data
    data.update(image_size=SIZE, color_jitter=0.4, lighting=0.1, cutout=3, mixup=0.5, cutmix=1.0)
    data.update(fields)
    return data


def batch_of(step, devices=1, keys=None, data=None):
    """The batch that training takes at a step of an epoch of three, from 18 images."""
    split = Split(pictures(n=18), np.arange(18, dtype=np.int32) % 10)
    order, augment = keys or tuple(jax.random.split(jax.random.key(0)))
    further = further_augmentation(data or all_on())
    mesh = make_mesh(devices)
    feed = ResidentFeed(
        split, mesh, order, augment, batch_size=6, crop_padding=1, flip=True, further=further
    )
    return jax.jit(feed.take)(feed.abstract, jnp.int32(step))


def assert_equal(found, expected, **tolerances):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerances), found, expected)


@pytest.mark.slow
def test_a_batch_depends_on_keys_and_step_alone():
    """Also on two devices, and beside another seed."""
    batch = batch_of(1)
    assert isinstance(batch.labels, MixedLabels)
    assert_equal(batch_of(1), batch, rtol=0)
    assert np.abs(batch_of(2).images - batch.images).max() > 1
    assert_equal(batch_of(1, devices=2), batch, rtol=1e-5, atol=1e-3)
    keys = tuple(jax.random.split(jax.random.key(0)))
    others = tuple(jax.random.split(jax.random.key(1)))
    both = batch_of(1, keys=tuple(map(jnp.stack, zip(others, keys, strict=True))))
    own = jax.tree.map(lambda leaf: leaf[1], both)
    assert_equal(own, batch, rtol=1e-5, atol=1e-3)
    assert np.abs(both.images[0] - batch.images).max() > 1


def test_mixup_and_cutmix_take_turns():
    """Cutmix keeps the levels of pixels, mixup does not."""
    further = jax.jit(further_augmentation(all_on(color_jitter=0.0, lighting=0.0, cutout=0)))
    images, labels = jnp.asarray(pictures()), jnp.arange(N, dtype=jnp.int32)
    kept = [
        bool((batch.images == batch.images.round()).all())
        for batch in (further(jax.random.key(seed), images, labels) for seed in range(40))
    ]
    assert 10 < sum(kept) < 30


def test_nothing_further_leaves_images_and_labels_as_they_are():
    images, labels = jnp.asarray(pictures()), jnp.arange(N, dtype=jnp.int32)
    batch = further_augmentation(cifar10.get_config().data)(KEY, images, labels)
    assert batch.images is images
    assert batch.labels is labels
    plain = Batch(batch_of(1, data=cifar10.get_config().data).images, 0)
    assert plain.images.dtype == jnp.uint8


def test_arrays_keep_the_augmentation_of_the_config():
    config = digits.get_config()
    config.data.update(color_jitter=0.25, cutout=3, mixup=0.5, cutmix=0.75, crop_padding=2)
    examples = pictures(), LABELS.clip(0)
    data = arrays.config_for(config, arrays.dataset_of(examples, examples)).data
    assert (data.color_jitter, data.cutout, data.mixup, data.cutmix) == (0.25, 3, 0.5, 0.75)
    assert (data.crop_padding, data.flip, data.channels, data.source) == (2, False, 3, "arrays")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("color_jitter", 1.5, "color_jitter is 1.5; it must be 0, for off, or from 0 to 1"),
        ("lighting", -0.1, "lighting is -0.1; it must be 0, for off, or from 0 to 10"),
        ("lighting", 0.1, "channels is 1. Lighting shifts colours"),
        ("cutout", 9, "cutout is 9; it must be at most --config.data.image_size, 8"),
        ("cutout", -1, "cutout is -1; it must be at least 0"),
        ("mixup", 1e-4, "mixup is 0.0001; it must be 0, for off, or from 0.01 to 100"),
        ("cutmix", float("nan"), "cutmix is nan; it must be 0, for off, or from 0.01"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(field, value, message):
    config = digits.get_config()
    config.data[field] = value
    with pytest.raises(UsageError, match=message):
        check_config(config)
