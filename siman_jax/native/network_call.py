"""Calls of native networks inside of `jax.jit`, on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from siman_jax.native import library
from siman_jax.native.network import Network

# Compiled programs know networks by their numbers alone, so a network that was once called in one
# stays as long as the process.
_CALLED: dict[int, Network] = {}


def network_call(network: Network, images: Array) -> Array:
    """Compute what `network` computes, on the threads of XLA.

    Args:
      network: prepared by `network.Network`.
      images: normalized, float32 `[batch, ...]` with the network's `image_size` numbers each.

    Returns:
      float32 `[batch, result_size]`.

    Raises:
      ValueError: the images have another dtype or size.
    """
    if images.dtype != jnp.float32 or images.size != images.shape[0] * network.image_size:
        raise ValueError(
            f"the images are {images.dtype}{list(images.shape)}; expected float32 with"
            f" {network.image_size} numbers for each image."
        )
    library.indices()  # registers the function
    _CALLED[network.number] = network
    return jax.ffi.ffi_call(
        library.NETWORK_CALL,
        jax.ShapeDtypeStruct((images.shape[0], network.result_size), jnp.float32),
        vmap_method="sequential",
    )(images, network=np.int64(network.number))
