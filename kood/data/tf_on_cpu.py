"""TensorFlow as the data room uses it: on the CPU, wherever another backend owns the accelerator.

TensorFlow takes nearly all memory of every GPU it sees at its first operation. Where Keras runs on JAX or torch that
would leave the model nothing, so TensorFlow is told, before its first operation, that there is no GPU.
"""

import contextlib
import os
import sys

import tensorflow as tf

__all__ = ["tf"]

# In use, or about to be.
_keras = sys.modules.get("keras")
if (_keras.config.backend() if _keras else os.environ.get("KERAS_BACKEND", "tensorflow")) != "tensorflow":
    # Raised only where somebody else has already run TensorFlow on the devices: then the memory is taken and
    # hiding them would change nothing.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
