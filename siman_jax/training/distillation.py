"""Distillation: a student learns the answers of a trained network, its teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jax import Array, lax

from siman_jax.training.metrics import Loss, to_teacher


@dataclass(frozen=True)
class Distillation:
    """A teacher, and how much its answers count.

        loss = (1 - weight) * loss of the labels + weight * `metrics.to_teacher`

    Attributes:
      teacher: the network, for the images that the student gets.
      temperature: of `to_teacher`.
      weight: above 0 and at most 1; with 1 the labels do not count.

    Source: Hinton et al., arXiv 1503.02531 (2015).
    """

    teacher: nn.Module
    temperature: float
    weight: float

    def loss(self, variables: Mapping[str, Any], images: Array, of_labels: Loss) -> Loss:
        """Return the loss of the student on `images`.

        Args:
          variables: of the teacher, which is evaluated, not trained.
          images: normalized, `[batch, height, width, channels]`.
          of_labels: the loss without a teacher.
        """
        answers: Any = lax.stop_gradient(self.teacher.apply(variables, images, train=False))

        def loss(logits: Array, labels: Array) -> Array:
            soft = to_teacher(logits, answers.astype(logits.dtype), self.temperature)
            if self.weight == 1:
                return soft
            return (1 - self.weight) * of_labels(logits, labels) + self.weight * soft

        return loss
