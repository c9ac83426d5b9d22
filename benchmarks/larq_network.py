"""ResNets of Larq layers, converted and run by Larq Compute Engine.

Its wheels need an older TensorFlow with Keras 2, so they get an environment of their own:

    python3.10 -m venv lce
    lce/bin/pip install tensorflow-cpu==2.15.1 'numpy<2' packaging flatbuffers tqdm 'setuptools<70'
    lce/bin/pip install --no-deps larq-compute-engine==0.16.0 larq==0.14.0 terminaltables
    python -m benchmarks.packed_inference --lce_python=lce/bin/python

The networks are Bi-Real Nets (arXiv 1808.00278): sign for weights and activations, a shortcut
around every convolution, as in this project, and no PReLU. Padding is with ones, which is fastest
in Larq Compute Engine. Its interpreter computes the images of a batch one after the other.
"""

from pathlib import Path
from typing import Any

from benchmarks.case import Case, Run

STAGES = {"imagenet.resnet18_1w1a": (2, 2, 2, 2), "cifar.resnet20_1w1a": (3, 3, 3)}


def convert(case: Case, path: Path) -> None:
    """Build a network with random parameters, convert it and write the model file."""
    import larq_compute_engine as lce

    if case.network not in STAGES:
        raise NotImplementedError(f"there is no Larq network for {case.network}")
    path.write_bytes(lce.convert_keras_model(build(case)))


def build(case: Case) -> Any:
    """Build the Keras model."""
    import larq
    import tensorflow as tf

    layers = tf.keras.layers
    imagenet = case.network.startswith("imagenet")

    def conv(x: Any, features: int, size: int, strides: int) -> Any:
        return layers.Conv2D(features, size, strides, padding="same", use_bias=False)(x)

    def binary_conv(x: Any, features: int, strides: int) -> Any:
        return larq.layers.QuantConv2D(
            features,
            3,
            strides,
            padding="same",
            pad_values=1.0,
            input_quantizer="ste_sign",
            kernel_quantizer="ste_sign",
            kernel_constraint="weight_clip",
            use_bias=False,
        )(x)

    def norm(x: Any) -> Any:
        return layers.BatchNormalization(
            beta_initializer=tf.keras.initializers.RandomNormal(0, 0.1),
            moving_variance_initializer=tf.keras.initializers.RandomUniform(0.5, 1.5),
        )(x)

    images = layers.Input((case.image_size, case.image_size, 3))
    x = conv(images, case.width, 7 if imagenet else 3, 2 if imagenet else 1)
    x = layers.ReLU()(norm(x))
    if imagenet:
        x = layers.MaxPool2D(3, 2, padding="same")(x)
    for stage, blocks in enumerate(STAGES[case.network]):
        features = case.width * 2**stage
        for index in range(2 * blocks):
            strides = 2 if stage > 0 and index == 0 else 1
            shortcut = x if strides == 1 else norm(conv(x, features, 1, strides))
            x = layers.add([norm(binary_conv(x, features, strides)), shortcut])
    x = layers.GlobalAvgPool2D()(x)
    return tf.keras.Model(images, layers.Dense(case.num_classes)(x))


def open_interpreter(path: Path, threads: int) -> Run:
    """Open a model file in the interpreter."""
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    return Interpreter(path.read_bytes(), num_threads=threads).predict
