"""A config of two small steps on the digits, for tests of --steps."""

from siman_jax.configs import digits
from siman_jax.errors import choose

RULES = {"real_weights": "real", "binary": "half_half"}


def get_config(step="binary"):
    """Two epochs of four steps of a network with one binary convolution."""
    config = digits.get_config()
    config.update(epochs=2, batch_size=64, eval_batch_size=360, keep_checkpoints=3)
    config.model.name = "tests.own_networks:named_as_in_torch"
    config.model.update(weight_rule=choose(RULES, step, "step"), activation_rule="siman")
    config.data.train_examples = 256
    config.init_from = "real_weights" if step == "binary" else ""
    return config
