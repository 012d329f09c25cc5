"""The training step under TensorFlow: a gradient tape."""

import tensorflow as tf

from kood.steps.terms import LossTerms

__all__ = ["TrainStep", "compiled"]


class TrainStep(LossTerms):
    """Gradient step of a `keras.Model` that has `losses`, for the TensorFlow backend."""

    def train_step(self, data):
        """One update from one batch."""
        with tf.GradientTape() as tape:
            loss, values = self.total(data, training=True)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        gradients = tape.gradient(scaled, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self.show(values)

    def test_step(self, data):
        """The loss terms of one batch, nothing learned."""
        _, values = self.total(data, training=False)
        return self.show(values)


def compiled(model):
    """The model's forward pass in inference mode, traced once for each shape.

    Args:
        model: A built `keras.Model`.

    Returns:
        A function of the model's inputs; NumPy arrays or tensors in, tensors out.
    """
    return tf.function(lambda inputs: model(inputs, training=False))
