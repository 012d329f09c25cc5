"""Keras's layers that look across rows, or draw for each row, made to see the whole batch on several devices.

On one device, and under jax, where one program spans the devices, they are Keras's own. A file names them, so it can be
read under every backend, which one with Keras's `synchronized` (TensorFlow alone has it) cannot.
"""

import keras
from keras import ops

from kood.backends.devices import mine, share, total, whole

__all__ = ["BatchNormalization", "Dropout"]


@keras.saving.register_keras_serializable(package="kood")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization (arXiv 1502.03167) by the mean and the variance of all replicas' rows."""

    def call(self, inputs, training=None, mask=None):
        if whole(1) == 1 or not (training and self.trainable) or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        rows = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        axes = [axis for axis in range(len(rows.shape)) if axis != self.axis % len(rows.shape)]
        moments = ops.stack([ops.mean(rows, axis=axes), ops.mean(ops.square(rows), axis=axes)])
        mean, square = ops.unstack(total(share(moments)), 2)
        variance = ops.maximum(square - ops.square(mean), 0.0)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        normal = ops.batch_normalization(rows, mean, variance, self.axis, self.beta, self.gamma, self.epsilon)
        return ops.cast(normal, self.compute_dtype)


@keras.saving.register_keras_serializable(package="kood")
class Dropout(keras.layers.Dropout):
    """Dropout whose draw is of the whole batch, of which each replica takes its rows."""

    def call(self, inputs, training=False):
        if whole(1) == 1 or not training or not self.rate:
            return super().call(inputs, training=training)
        shape = ops.shape(inputs)
        return inputs * mine(super().call(ops.ones((whole(shape[0]), *shape[1:]), inputs.dtype), training=True))
