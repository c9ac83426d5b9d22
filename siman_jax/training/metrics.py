"""Loss and accuracy as sums on the device, converted to means on the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from siman_jax.data.feed import Labels, MixedLabels

METRICS = ("loss", "top1", "top5")

# Function from logits `[batch, classes]` and labels int32 `[batch]` to losses `[batch]`.
Loss = Callable[[Array, Array], Array]


@struct.dataclass
class Sums:
    """Sums over examples, so that batches of different sizes add up exactly.

    Attributes:
      loss: summed loss, in the dtype of the logits.
      top1: int32, examples whose label has the largest logit.
      top5: int32, examples whose label has one of the five largest logits.
      count: int32, examples.
    """

    loss: Array
    top1: Array
    top5: Array
    count: Array

    @classmethod
    def zero(cls) -> "Sums":
        """Sums over no examples, in four separate buffers, so that all can be donated."""
        return cls(jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.loss + other.loss,
            self.top1 + other.top1,
            self.top5 + other.top5,
            self.count + other.count,
        )

    def means(self) -> dict[str, float]:
        """Return the `METRICS`: mean loss, and top-1 and top-5 accuracy in percent."""
        sums = float(self.loss), 100 * int(self.top1), 100 * int(self.top5)
        return {name: total / int(self.count) for name, total in zip(METRICS, sums, strict=True)}


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of each example, `[batch]`, from logits `[batch, classes]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def smoothed_cross_entropy(logits: Array, labels: Array, share: float) -> Array:
    """Cross-entropy with smoothed labels, `[batch]`, from logits `[batch, classes]`.

    Each example's target is `1 - share` for its label, and `share` spread evenly over all classes.

    Source: Szegedy et al., arXiv 1512.00567 (2015), section 7.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, share))


def to_teacher(logits: Array, answers: Array, temperature: float) -> Array:
    """Cross-entropy of each example, `[batch]`, to the softened answers of a teacher.

        T^2 * sum_c softmax(answers / T)_c * -log softmax(logits / T)_c

    Dividing by the temperature T divides gradients by about T^2, hence the factor.

    Args:
      logits: `[batch, classes]`.
      answers: the teacher's logits, with the same shape and dtype.
      temperature: T, above 0.

    Source: Hinton et al., arXiv 1503.02531 (2015), section 2.
    """
    targets = jax.nn.softmax(answers / temperature)
    return temperature**2 * optax.softmax_cross_entropy(logits / temperature, targets)


def score(logits: Array, labels: Labels, loss: Loss = cross_entropy) -> Sums:
    """Compute the sums of a batch.

    Args:
      logits: `[batch, classes]`.
      labels: int32 `[batch]`; examples with a negative label do not count. Of mixed images, the
        losses of both labels are mixed, and hits are those of the label with the larger share.
      loss: the loss of each example.
    """
    leading = leading_labels(labels)
    counted = leading >= 0
    losses = _losses(logits, labels, loss)
    rank = _rank(logits, jnp.maximum(leading, 0))
    return Sums(
        jnp.sum(jnp.where(counted, losses, 0)),
        jnp.sum((rank < 1) & counted, dtype=jnp.int32),
        jnp.sum((rank < 5) & counted, dtype=jnp.int32),
        jnp.sum(counted, dtype=jnp.int32),
    )


def leading_labels(labels: Labels) -> Array:
    """Return plain labels: of mixed images those with the larger share."""
    return labels.leading() if isinstance(labels, MixedLabels) else labels


def _losses(logits: Array, labels: Labels, loss: Loss) -> Array:
    if not isinstance(labels, MixedLabels):
        return loss(logits, jnp.maximum(labels, 0))
    own, other = (loss(logits, jnp.maximum(part, 0)) for part in (labels.own, labels.other))
    share = labels.share.astype(own.dtype)
    return share * own + (1 - share) * other


def _rank(logits: Array, labels: Array) -> Array:
    """Rank of each label by its logit, 0 for the largest; among equal logits the first class leads.

    NaN ranks first. Counts instead of sorting, because XLA gathers sharded rows to sort them.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None] < labels[:, None]
    leads = ~(logits <= own) | ((logits == own) & earlier)
    return jnp.sum(leads, axis=1)
