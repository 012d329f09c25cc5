"""TensorFlow as the data room uses it: on the CPU, wherever another backend owns the accelerator.

TensorFlow takes nearly all memory of every GPU it sees at its first operation. Where Keras runs on JAX or torch that
would leave the model nothing, so TensorFlow is told, before its first operation, that there is no GPU.
"""

import contextlib
import os
import sys

import tensorflow as tf

__all__ = ["keras_backend", "tf"]


def keras_backend() -> str:
    """The name of the Keras backend in use or about to be: "tensorflow", "jax", "torch" or another."""
    if "keras" in sys.modules:
        import keras

        return keras.config.backend()
    return os.environ.get("KERAS_BACKEND", "tensorflow")


if keras_backend() != "tensorflow":
    # Raised only where somebody else has already run TensorFlow on the devices: then the memory is taken and
    # hiding them would change nothing.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
